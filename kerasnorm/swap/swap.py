"""`swap_norms` and `inspect_norms`: decide each site, carry it out, fit, compare, report."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
import warnings
from typing import Any, Literal

import keras

from kerasnorm.clone.default_input import is_unbuilt, stand_in
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.compare.agreement import random_agreement
from kerasnorm.compare.differences import check_finite
from kerasnorm.compare.tensor_pairs import pair_models
from kerasnorm.errors import DataError, FidelityWarning, SwapError, check_whole_number
from kerasnorm.fit.data import input_batches
from kerasnorm.fit.data_check import SAMPLES, check_like, unlike_data
from kerasnorm.fit.parts import first_batches, in_larger_parts
from kerasnorm.fit.sample_limit import MAX_SAMPLES, SampleLimit
from kerasnorm.fit.time_budget import TimeBudget
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.sites import holds_batch_norm
from kerasnorm.graph.weight_checks import Fault, faults_of
from kerasnorm.swap.calibrate import calibrate
from kerasnorm.swap.check import check_copy
from kerasnorm.swap.decide import SiteChoice, decide
from kerasnorm.swap.groups import Groups, check_groups, doubts, to_try
from kerasnorm.swap.non_trainable import note_non_trainable
from kerasnorm.swap.own_classes import note_what_does_not_load
from kerasnorm.swap.pilot import Pilot
from kerasnorm.swap.report import Report
from kerasnorm.swap.result import Swap, measure, with_fit
from kerasnorm.swap.sensitivity import choose_by_answers
from kerasnorm.targets.registry import TARGETS
from kerasnorm.targets.site_record import Verdict
from kerasnorm.targets.target import Damping

# What `damping="auto"` tries.
_AUTO = (0.0, 0.25, 1.0, 4.0)


def swap_norms(
    model: keras.Model,
    to: str | dict[str, str],
    data: Any = None,
    *,
    sites: SiteChoice | None = None,
    damping: float | Literal["auto"] = "auto",
    groups: Groups = None,
    strict: bool = False,
    allow_unlike_data: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    memory_budget: int = 2**31,
    time_budget: float | None = None,
    max_samples: int | None = MAX_SAMPLES,
) -> Swap:
    """Replace the BatchNorm of a trained model by another normalization.

    At inference BatchNorm is y = a·x + c with a = γ/s, s = sqrt(v + ε), c = β − m·a.

    - `to="weight"` is exact and needs no data: a linear layer in front of a BatchNorm takes it in
      as v = W, g = a·‖W‖, b = c + a·b₀; any other BatchNorm becomes `WeightNorm(Affine())`.
    - `to="layer"` starts from the stored statistics: the linear layer in front, or an `Affine`,
      takes a and c in, and a `LayerNorm` follows that has on average the gain and bias to undo
      itself. With `data`, kernel, gain and bias are fitted to what the source puts out.
    - `to="group"` does the same with a `GroupNorm`, over groups of channels: see `groups`.
    - `to="cosine"` needs `data`: `CosineNorm(rescale=True)` around the linear layer in front, its
      kernel, gain and bias fitted to what the source puts out.

    With data, layer after layer is fitted on what the swapped model feeds it, other linear layers
    behind the first site included; a step is kept where it fits held-out rows better. Where the
    answers are then off by more than 0.05 (nats of Kullback-Leibler divergence, or a share of what
    the answers say; 1 − R² of numbers), a model small enough for that to take no more than a minute
    or two is trained on the same data, as `distill` does, for up to 20 epochs. Of ten samples in a
    row, eight are fitted to and trained on, one chooses and one is for the report alone: what
    stored statistics gave, what the fits made of it or what training did stays by whose answers
    are nearest the source's on those that choose. A BatchNorm called with `training=True` is
    refused, since its batch decides in `model(x)`, or in code anywhere, unless it is frozen.

    The source model is not touched and shares no variable with the result. Layer names, weights,
    trainable flags, dtype policies and the compile state (the optimizer's slots aside) are kept.
    Regularizers and constraints go on meaning a weight as it was before a scale was folded in.
    What cannot be kept is in `report.notes`, new names are in `report.layers`, and what speaks
    against the result is in `report.warnings`, each of them a `FidelityWarning` as well.
    Before it returns, both models are run on seeded random inputs and compared at every site.

    Args:
        model: A built Functional or Sequential model, others nested in it included; or one with a
            `call` of its own, made of Keras layers and `keras.ops`, that was called before.
        to: "weight", "layer", "group", "cosine", or a dict from site name to target; sites not
            named stay.
        data: Unlabeled calibration data: an array of inputs, a tuple, list or dictionary of arrays
            for several inputs, or an iterable of batches (`tf.data.Dataset`, `PyDataset`,
            generator), of which a tuple counts as (inputs, targets, …). A few hundred samples do.
            It may be larger than memory (`numpy.load(path, mmap_mode="r")`) or without end.
        sites: Names of the sites to swap, or a predicate on a site's record (see
            `inspect_norms`); the others stay BatchNorm. None for all; then a site where a layer or
            cosine norm does harm becomes weight norm: one that reads the model's input, where
            others are left; one whose output is the logits of a final softmax or sigmoid; for a
            layer norm, vectors of fewer than four channels, and channels so unlike in size that
            fewer than six, and than half, decide what a sample is divided by; and, with 96 samples
            or more, those that by themselves move the answers most, until the losses of the others
            add up to no more than 0.02 (nats of Kullback-Leibler divergence, or the share of them
            where the answers say less than one; 1 − R² of numbers). Sites that are named, here or
            in `to`, become what was asked for.
        damping: α ≥ 0: CosineNorm's damping becomes sqrt(α·mean‖x‖²) and LayerNorm's epsilon
            α·mean σ². At 0 the method is pure; as it grows it tends to the affine map, for a layer
            norm less the mean of each sample. "auto" takes for each site the first of 0, 1/4, 1
            and 4 that keeps 99 % of the variance on samples that choose, or the one that keeps
            most where none does, and 4 without data; `report.sites` has what it was.
        groups: How many groups of channels each group norm has: a number, a dict of numbers by
            site name, "auto", or None for 32, or for as many as leave 16 channels in each, and
            more where too few of these would decide. A number that does not divide the channels,
            or leaves fewer than two channels or 16 values in a group, counts as the next lower
            one. "auto" takes for each site the one of 1, 2, 4, 8, 16 and 32, and of what None
            stands for, by which the answers move least; or one of these numbers everywhere, where
            the model fitted with it answers more like the source. It needs 96 samples, and for each
            number twice the time that choosing sensitive sites takes. `report.sites` has what it
            was.
        strict: Whether a refused site, a model without BatchNorm, or data unlike that of the
            training is an error.
        allow_unlike_data: Whether data is used though the first BatchNorm that was trained meets
            inputs whose deviation is more than 20 times what it remembers, or less than a 20th,
            or whose mean is more than 20 deviations away, as with pixels of 0 to 255 for those of
            0 to 1. What is measured on such data does not say how the model does on its own.
            Beyond 5 times there is a warning.
        seed: Of the subset of the data, of the sampling of positions, and of the order in training.
        batch_size: Of the batches that arrays are cut into; where samples are small, several are
            run at once. A model that takes batches of one size gets such, of any data, and what
            does not fill one is left out.
        memory_budget: Bytes of activations to hold in memory; beyond it they go to temporary
            files in the folder that TMPDIR names, which are gone when the process ends, however it
            does. Both together hold, of each sample that is used, what later layers of the two
            models still read: at most 18 MB for a ResNet50 at 224x224, so that 2,048 samples take
            36 GB of disk. Besides, a quarter as many bytes may hold samples to train on.
        time_budget: Seconds that the calibration may take, about; None for as many as it does. A
            first fit to 64 samples tells how many there is time to fit to, 32 at least; a warm run
            tells for how many epochs, if any, there is time to train, which ends when the time is
            over. The result depends on the machine then.
        max_samples: How many samples are used at most, None for all of them. Of larger arrays a
            random subset is read, spread over the parts that fit, choose and report; of an iterable
            the first batches, and no more of them. `report.notes` says what was used of what.

    Returns:
        A `Swap` with `.model`, `.report`, `.differences` and `.compare(inputs)`.

    Raises:
        SwapError: If the model has no graph (subclassed or not built), a layer cannot be copied,
            a weight outside of BatchNorm is not finite, `to` or `sites` name what does not exist,
            `strict` and something was refused, or what is exact, or not swapped, differs from the
            source by more than rounding. DataError, which is one, if a number, or the data, is not
            as above, or the data is far from that of the training.

    Example:

    >>> layers = keras.layers
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    ... )
    >>> swap = swap_norms(model, to="weight")
    >>> [type(layer).__name__ for layer in swap.model.layers]
    ['WeightNorm']
    """
    shares = _shares(damping)
    limit, budget = SampleLimit(max_samples, seed), TimeBudget(time_budget)
    check_whole_number("batch_size", batch_size, least=1)
    check_whole_number("memory_budget", memory_budget, least=0)
    model_graphs = graphs_of(model, holds_batch_norm)
    check_groups(groups, to)
    decision = decide(model_graphs, to, sites, None if groups == "auto" else groups)
    report = Report(model.name, to if isinstance(to, str) else "mixed", decision.records)
    faults = _faults_outside_sites(model)
    _check_numbers(model, faults)
    if strict:
        _check_strict(report)
    if data is None:
        _check_data(report)
    batches: Any = None
    if data is not None:
        batches = input_batches(model_graphs.root, data, batch_size, limit)
        if model_graphs.root.batch_size is None:
            batches = in_larger_parts(batches)
        settings = {"seed": seed, "memory_budget": memory_budget}
        if any(plan.verdict != "exact" for plan in decision.plans.values()):
            first = list(first_batches(batches, SAMPLES))
            batches = itertools.chain(first, batches)
            unlike = unlike_data(model_graphs, decision.sites, first)
            check_like(unlike, strict, allow_unlike_data, model.name)
            report.unlike_data = None if unlike is None else str(unlike)
        pilot = Pilot(budget)
        batches = pilot.run(decision, batches, shares, **settings)
        decisions = to_try(decision) if groups == "auto" else [decision]
        decision, batches = choose_by_answers(
            decisions, batches, shares, most=pilot.to_run / len(decisions), **settings
        )
        report.sites = decision.records
    edits, requests = decision.carry_out(shares)
    dampings = dict.fromkeys(requests, -1)
    rebuilt = rebuild(model_graphs, edits)
    models = pair_models(model_graphs, rebuilt.graphs, rebuilt.counterpart, decision.sites)
    differences, uncompared = check_copy(models, decision.plans.values())
    of_data: list[str] = []
    if batches is not None and requests:
        found = calibrate(
            model_graphs,
            rebuilt,
            requests,
            pilot.within_time(batches),
            budget,
            starts_matched=all(
                record.verdict == "matched" for record in report.sites if record.name in requests
            ),
            **settings,
        )
        report.trained, dampings = found.trained, found.dampings
        verdict: Verdict = "calibrated" if found.fitted or found.trained else "matched"
        report.sites = [with_fit(record, found.scores, verdict) for record in report.sites]
        measure(report, models, found.held_out, sites=found.remeasure)
        report.doubts = [*decision.doubts, *found.doubts]
        of_data = [*(pilot.notes or limit.notes), *found.notes]
    elif batches is not None:
        of_data = ["the data is not used: nothing here is fitted"]
    if any(plan.verdict != "exact" for plan in decision.plans.values()):
        differences, more = check_finite(models)
        uncompared += [note for note in more if note not in uncompared]
        if data is None:
            report.on_random_inputs = random_agreement(models)
    report.sites = [
        dataclasses.replace(record, damping=shares[dampings[record.name]])
        if record.name in dampings
        else record
        for record in report.sites
    ]
    report.layers = rebuilt.layers
    report.doubts += [*doubts(decision), *uncompared]
    report.notes = [
        *of_data,
        *decision.notes(),
        *rebuilt.notes,
        *note_non_trainable(rebuilt.model),
        *note_what_does_not_load(rebuilt.model),
        *_said_of([*_loading(model, "doubts"), *faults]),
    ]
    report.repairs = _loading(model, "repairs")
    for warning in report.warnings:
        warnings.warn(f"{model.name}: {warning}", FidelityWarning, stacklevel=2)
    return Swap(rebuilt.model, report, differences, models)


def inspect_norms(model: keras.Model) -> Report:
    """What a swap would do to each BatchNorm call; nothing is changed.

    Args:
        model: A model as `swap_norms` takes it; or a Sequential one that is not built, which is
            looked at for the first usual input shape that its layers take.

    Returns:
        A `Report` with one record for each BatchNorm call and target.

    Raises:
        SwapError: If the model has no graph (its code cannot be followed, or no shape is found).

    Example:

    >>> model = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    >>> [site.becomes for site in inspect_norms(model).sites]
    ['WeightNorm(Conv2D)', 'LayerNorm', 'GroupNorm', 'CosineNorm(Conv2D)']
    """
    notes, repairs, doubts = [], _loading(model, "repairs"), _loading(model, "doubts")
    if is_unbuilt(model):
        model, shape = stand_in(model)
        notes.append(
            f"the model is not built: this is for inputs of shape {shape} and initial weights"
        )
    model_graphs = graphs_of(model, holds_batch_norm)
    records = [
        record for target in TARGETS for record in decide(model_graphs, target, None).records
    ]
    notes += _said_of([*doubts, *_faults_outside_sites(model)])
    return Report(model.name, ", ".join(TARGETS), records, notes=notes, repairs=repairs)


def _shares(damping: Any) -> Damping:
    if isinstance(damping, str) and damping == "auto":
        return _AUTO
    number = isinstance(damping, numbers.Real) and not isinstance(damping, bool)
    if not (number and 0 <= damping < float("inf")):
        raise DataError(
            f"`damping` must be at least 0, and finite, or 'auto'. Received: damping={damping!r}."
        )
    return (float(damping),)


def _faults_outside_sites(model: keras.Model) -> list[Fault]:
    """What no record tells: a BatchNorm whose own numbers make it unusable is refused by name."""
    return [fault for fault in faults_of(model) if not (fault.in_batch_norm and fault.spoils)]


def _loading(model: keras.Model, what: str) -> list[str]:
    """What `load_model` told of a model that comes from it: its "repairs", or its "doubts"."""
    return list(getattr(getattr(model, "load_report", None), what, ()))


def _said_of(problems: list[Any]) -> list[str]:
    return [f"warning: {problem}" for problem in problems]


def _check_numbers(model: keras.Model, faults: list[Fault]) -> None:
    spoiled = [str(fault) for fault in faults if fault.spoils]
    if spoiled:
        more = f", and {len(spoiled) - 3} more" if len(spoiled) > 3 else ""
        raise SwapError(
            f"The weights must be finite. Received {'; '.join(spoiled[:3])}{more}.",
            model=model.name,
            hint="Its training has diverged: go back to an earlier checkpoint.",
        )


def _check_data(report: Report) -> None:
    needing = [site.name for site in report.sites if site.verdict == "calibrated"]
    if needing:
        raise DataError(
            "A swap to cosine norm needs data: stored statistics do not tell how long its inputs "
            f"are. Received data=None, for {len(needing)} BatchNorm calls.",
            model=report.model,
            hint="Give `data`, some hundred unlabeled inputs (--data X.npy).",
        )


def _check_strict(report: Report) -> None:
    if not report.sites:
        raise SwapError("`strict` needs a BatchNorm to swap. Received none.", model=report.model)
    if report.refused:
        refusals = "; ".join(f"'{site.name}': {site.reason}" for site in report.refused)
        raise SwapError(
            f"`strict` allows no refused site. Received {refusals}.", model=report.model
        )
