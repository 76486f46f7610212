"""`swap_norms` and `inspect_norms`: decide each site, carry it out, report."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasnorm.errors import SwapError
from kerasnorm.rewrite import match, verify
from kerasnorm.rewrite.forest import Forest, graphs_of
from kerasnorm.rewrite.graph import Call
from kerasnorm.rewrite.match import Hidden, Site
from kerasnorm.rewrite.rebuild import Replace, Skip, rebuild
from kerasnorm.rewrite.report import Report, SiteRecord
from kerasnorm.rewrite.rules import to_weight
from kerasnorm.rewrite.verify import Twin

_RULES = {"weight": to_weight}

SiteChoice = Collection[str] | Callable[[SiteRecord], bool]


@dataclass(frozen=True)
class Swap:
    """The result of `swap_norms`.

    Attributes:
        model: The swapped model.
        report: What happened to each BatchNorm call.
        differences: What `compare()` gives for seeded random inputs; empty where the source cannot
            be run on such.
    """

    model: keras.Model
    report: Report
    differences: dict[str, float] = field(repr=False)
    _source: Forest = field(repr=False)
    _twins: list[Twin] = field(repr=False)

    def compare(self, inputs: Any = None) -> dict[str, float]:
        """How far each BatchNorm call's output is from what the swapped model has in its place.

        Both models are run at inference, without side effects. The sites inside a nested model
        are compared on what the source feeds that model.

        Args:
            inputs: A batch in the structure of the model's inputs; None for seeded random
                numbers.

        Returns:
            max|Δ| / std of the source's tensor over the batch, by site name; then for the model's
            outputs, "output 0", "output 1", …. Infinite where one model's answer is finite and
            the other's is not.

        Raises:
            SwapError: If the source itself cannot be run on the inputs.

        Example:

        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> sorted(swap_norms(model, "weight").compare())
        ['batch_normalization', 'output 0']
        """
        return verify.differences(self._source, self._twins, inputs)


def swap_norms(
    model: keras.Model,
    to: str | dict[str, str],
    *,
    sites: SiteChoice | None = None,
    strict: bool = False,
) -> Swap:
    """Replace the BatchNorm of a trained model by another normalization.

    `to="weight"` is exact at inference and needs no data: with a = γ/s and s = sqrt(v + ε), a
    linear layer in front of a BatchNorm takes it in as v = W, g = a·‖W‖, b = β + (b₀ − m)·a; any
    other BatchNorm becomes `WeightNorm(Affine())`. A BatchNorm called with `training=True` has no
    such form and is refused.

    The source model is not touched and shares no variable with the result. Layer names, weights,
    trainable flags, dtype policies, regularizers and the compile state (the optimizer's slots
    aside) are kept; what cannot be is in `report.notes`, new names are in `report.layers`.
    Before it returns, both models are run on seeded random inputs and compared at every site.

    Args:
        model: A built Functional or Sequential model, others nested in it included.
        to: "weight", or a dict from site name to target; sites not named stay.
        sites: Names of the sites to swap, or a predicate on a site's record (see
            `inspect_norms`); the others stay BatchNorm. None for all.
        strict: Whether a refused site, or a model without BatchNorm, is an error.

    Returns:
        A `Swap` with `.model`, `.report`, `.differences` and `.compare(inputs)`.

    Raises:
        SwapError: If the model has no graph (subclassed or not built), a layer cannot be copied,
            `to` or `sites` name what does not exist, `strict` and something was refused, or
            the result differs from the source by more than rounding.

    Example:

    >>> layers = keras.layers
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    ... )
    >>> swap = swap_norms(model, to="weight")
    >>> [type(layer).__name__ for layer in swap.model.layers]
    ['WeightNorm']
    """
    trees = graphs_of(model, match.holds_batch_norm)
    found, hidden = match.find_sites(trees)
    targets = _targets(to, sites, found, hidden, trees)
    plans = {
        site: _RULES[targets[site.name]].check(site, trees)
        for site in found
        if site.name in targets
    }
    edits: dict[Call, Skip | Replace] = {}
    notes: list[str] = []
    shared: dict[int, Skip | Replace] = {}
    for site, plan in plans.items():
        rule = _RULES[targets[site.name]]
        for call, edit in rule.rewrite(site, plan, _name_in_place(site, found, plans)).items():
            # one BatchNorm called in several places stays one layer
            in_place = call is site.call and isinstance(edit, Replace)
            edits[call] = shared.setdefault(id(site.layer), edit) if in_place else edit
        notes += rule.lost(site, plan, trees)
    records = [plans[site].record if site in plans else _left_record(site) for site in found]
    records += [_hidden_record(inner, to if isinstance(to, str) else "none") for inner in hidden]
    report = Report(trees.root.owner.name, to if isinstance(to, str) else "mixed", records)
    if strict:
        _insist(report)
    rebuilt = rebuild(trees, edits)
    copies, tensors = rebuilt.graphs, rebuilt.tensors
    twins = [
        Twin(
            site.name,
            site.graph,
            copies[id(site.graph.owner)],
            site.call.output,
            tensors[id(site.call.output)],
        )
        for site in found
    ]
    twins += verify.output_twins(trees, copies[id(trees.root.owner)])
    differences, uncompared = verify.insist(trees, twins)
    report.layers, report.notes = rebuilt.layers, notes + rebuilt.notes + uncompared
    return Swap(rebuilt.model, report, differences, trees, twins)


def inspect_norms(model: keras.Model) -> Report:
    """What a swap would do to each BatchNorm call; nothing is changed.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        A `Report` with one record for each BatchNorm call and target.

    Raises:
        SwapError: If the model has no graph (subclassed, or not built).
    """
    trees = graphs_of(model, match.holds_batch_norm)
    found, hidden = match.find_sites(trees)
    records: list[SiteRecord] = []
    for target, rule in _RULES.items():
        records += [rule.check(site, trees).record for site in found]
        records += [_hidden_record(inner, target) for inner in hidden]
    return Report(model.name, ", ".join(_RULES), records)


def _targets(
    to, sites: SiteChoice | None, found: list[Site], hidden: list[Hidden], trees: Forest
) -> dict[str, str]:
    """The target of each site that is to be swapped."""
    names = [site.name for site in found]
    wanted: dict[str, Any] = dict(to) if isinstance(to, dict) else dict.fromkeys(names, to)
    for target in (*wanted.values(), *([] if isinstance(to, dict) else [to])):
        if not isinstance(target, str) or target not in _RULES:
            raise SwapError(
                f"`to` must be one of {', '.join(repr(rule) for rule in _RULES)}. "
                f"Received: to={target!r}."
            )
    if callable(sites):
        chosen = {
            site.name
            for site in found
            if site.name in wanted and sites(_RULES[wanted[site.name]].check(site, trees).record)
        }
    elif isinstance(sites, str):
        raise SwapError(
            f"`sites` must be a list of names or a predicate. Received: sites={sites!r}.",
            hint=f"Write sites=[{sites!r}].",
        )
    else:
        chosen = set(wanted if sites is None else sites)
    unknown = sorted((chosen | set(wanted)) - set(names) - {inner.name for inner in hidden})
    if unknown:
        raise SwapError(
            f"Sites must be BatchNorm calls of the model. Received: {unknown}.",
            hint=f"They are: {', '.join(names)}.",
        )
    return {name: target for name, target in wanted.items() if name in chosen}


def _name_in_place(site: Site, found: list[Site], plans: dict[Site, Any]) -> str:
    """What to call a layer that stands where a BatchNorm stood: its name, unless that stays."""
    name = site.layer.name
    stays = any(
        other.layer is site.layer
        and (other not in plans or plans[other].record.verdict == "refused")
        for other in found
    )
    taken = {call.operation.name for call in site.graph.calls}
    while stays and name in taken:
        name += "_swapped"
    return name


def _left_record(site: Site) -> SiteRecord:
    return SiteRecord(site.name, "none", "refused", "sites", "BatchNorm", reason="not asked for")


def _hidden_record(inner: Hidden, target: str) -> SiteRecord:
    return SiteRecord(
        inner.name,
        target,
        "refused",
        "graph",
        "BatchNorm",
        reason=inner.reason,
    )


def _insist(report: Report) -> None:
    if not report.sites:
        raise SwapError("`strict` needs a BatchNorm to swap. Received none.", model=report.model)
    if report.refused:
        refusals = "; ".join(f"'{site.name}': {site.reason}" for site in report.refused)
        raise SwapError(
            f"`strict` allows no refused site. Received {refusals}.", model=report.model
        )
