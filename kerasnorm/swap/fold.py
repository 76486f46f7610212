"""Back to plain Keras layers, wherever that is exact: BatchNorm, and what took its place."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import keras

from kerasnorm import keras_private
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.clone.rebuilds import Rebuilds
from kerasnorm.compare.differences import check_equal
from kerasnorm.errors import SwapError
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.layers import Affine, BatchNorm, WeightNorm
from kerasnorm.layers.rescaled import RescaledConstraint, RescaledRegularizer
from kerasnorm.swap.fold_sites import FoldedSites
from kerasnorm.swap.own_classes import note_what_does_not_load
from kerasnorm.swap.plain_edits import holds_what_folds, plain_edits
from kerasnorm.swap.report import Report
from kerasnorm.targets import merge_affine
from kerasnorm.targets.plain import fold_affine, fold_batch_norm, leave_for_now, unfold_affine
from kerasnorm.targets.registry import TARGETS
from kerasnorm.targets.target import Fold
from kerasnorm.targets.weight import fold_weight_norm_if_exact


@dataclass(frozen=True)
class Folded:
    """What folding a model gave.

    Attributes:
        model: The model in plain layers.
        report: What took in each BatchNorm call.
        differences: How far the calls and outputs that were compared are off on random inputs.
    """

    model: keras.Model
    report: Report
    differences: dict[str, float] = field(repr=False)


def fold_norms(model: keras.Model) -> keras.Model:
    """A copy of the model made of plain `keras.layers` only, which computes the same function.

    Every BatchNorm call that runs on its stored statistics, Keras's BatchNormalization or ours, is
    folded: into the linear layer in front, across what commutes with it; or into the linear layers
    behind where that is exact, border pixels included; what is left becomes a Rescaling with a
    scale and an offset for each channel, of any axis, which passes masks on and does not train.
    The same becomes of an Affine. A BatchNorm whose batch decides (its call has `training=True`
    and it is not frozen) stays a BatchNormalization.

    Every WeightNorm becomes the layer it wraps with the finished kernel w = g·v/‖v‖, every
    LayerNorm a LayerNormalization or a GroupNormalization of one group. Layers inside
    TimeDistributed, and in code that Keras can follow, are folded too, and a WeightNorm that a
    recurrent layer or Bidirectional holds. The result loads where kerasnorm is not installed, but
    for models of Keras 1 and 2 with `hard_sigmoid`, whose function it keeps. Regularizers and
    constraints of a weight that changes or goes have no plain equivalent and are left out.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        A new model of the same inputs and outputs (shapes, dtypes, names); the source is not
        touched and shares no variable with it. A model without such layers is copied as it is.

    Raises:
        SwapError: If a kerasnorm layer has no exact plain equivalent, naming all such layers; or
            the result differs from the source by more than rounding at a BatchNorm call.

    Example:

    >>> layers = keras.layers
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    ... )
    >>> [type(layer).__name__ for layer in fold_norms(model).layers]
    ['Conv2D']
    """
    return fold(model).model


def fold(model: keras.Model) -> Folded:
    """What `fold_norms` does, with a report on each BatchNorm call; see there."""
    steps = Rebuilds(model, holds_what_folds)
    folds: dict[type, Fold] = {Affine: leave_for_now, BatchNorm: fold_batch_norm}
    for target in TARGETS.values():
        folds |= target.folds
    sites = FoldedSites(steps)
    edits, stuck = plain_edits(steps.now, folds)
    _check_plain(model, stuck)
    sites.rebuilt(steps.apply({**edits, **sites.edits}))
    while found := merge_affine.merges(steps.now):
        sites.merged(found)
        sites.rebuilt(steps.apply({call: e for m in found for call, e in m.edits.items()}))
    if any(type(layer) is Affine for layer in keras_private.sublayers(steps.now.root.owner)):
        to_plain = functools.partial(fold_affine, masked=sites.own_masks())
        edits, stuck = plain_edits(steps.now, {Affine: to_plain})
        _check_plain(model, stuck)
        sites.in_place(edits)
        sites.rebuilt(steps.apply(edits))
    plain = steps.now.root.owner
    _drop_rescaled_penalties(plain)
    differences, uncompared = check_equal(sites.pairs(set(folds)))
    report = Report(model.name, "fold", sites.records, layers=steps.layers)
    own = note_what_does_not_load(plain)
    report.notes, report.doubts = [*sites.notes, *steps.notes, *own], uncompared
    return Folded(plain, report, differences)


def fold_weight_norms(model: keras.Model, *, always_copy: bool = False) -> keras.Model:
    """A copy of the model in which every WeightNorm is the layer it wraps, kernel finished.

    What `fold_norms` does, for WeightNorm alone. `Affine` stays, and a diagonal EinsumDense becomes
    an `Affine`: a multiplication and an addition in any runtime, where a general einsum is a matrix
    product between reshapes.

    Args:
        model: As for `fold_norms`.
        always_copy: Whether a model without any of these is copied too; otherwise it is what comes
            back.
    """
    folds: dict[type, Fold] = {
        WeightNorm: fold_weight_norm_if_exact,
        keras.layers.EinsumDense: unfold_affine,
    }
    source = graphs_of(model)
    edits, _ = plain_edits(source, folds)
    if not edits and not always_copy:
        return model
    return rebuild(source, edits).model


def _check_plain(model: keras.Model, stuck: list[str]) -> None:
    if stuck:
        raise SwapError(
            "Only layers with an exact equivalent among keras.layers can be folded. Received "
            f"{', '.join(dict.fromkeys(stuck))}.",
            model=model.name,
            hint="Keep the model as it is: it loads wherever kerasnorm is imported.",
        )


def _drop_rescaled_penalties(model: keras.Model) -> None:
    rescaled = (RescaledRegularizer, RescaledConstraint)
    for layer in keras_private.sublayers(model):
        for name, value in list(vars(layer).items()):
            if isinstance(value, rescaled):
                setattr(layer, name, None)
    for variable in model.variables:
        if isinstance(variable.regularizer, rescaled):
            variable.regularizer = None
        if isinstance(variable.constraint, rescaled):
            variable.constraint = None
