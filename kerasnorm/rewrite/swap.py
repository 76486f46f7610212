"""`swap_norms` and `inspect_norms`: decide each site, carry it out, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasnorm.errors import DataError, SwapError
from kerasnorm.rewrite import match, verify
from kerasnorm.rewrite.calibration import Wanted, calibrate, input_batches
from kerasnorm.rewrite.forest import Forest, graphs_of
from kerasnorm.rewrite.graph import Call
from kerasnorm.rewrite.match import Hidden, Site
from kerasnorm.rewrite.rebuild import Rebuilt, Replace, Skip, rebuild
from kerasnorm.rewrite.report import Report, SiteRecord
from kerasnorm.rewrite.rules import to_cosine, to_layer, to_weight
from kerasnorm.rewrite.rules.plan import FitRequest, Plan
from kerasnorm.rewrite.verify import Twin

_RULES: dict[str, Any] = {"weight": to_weight, "layer": to_layer, "cosine": to_cosine}

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
    data: Any = None,
    *,
    sites: SiteChoice | None = None,
    damping: float = 0.0,
    strict: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    memory_budget: int = 2**31,
) -> Swap:
    """Replace the BatchNorm of a trained model by another normalization.

    At inference BatchNorm is y = a·x + c with a = γ/s, s = sqrt(v + ε), c = β − m·a.

    - `to="weight"` is exact and needs no data: a linear layer in front of a BatchNorm takes it in
      as v = W, g = a·‖W‖, b = c + a·b₀; any other BatchNorm becomes `WeightNorm(Affine())`.
    - `to="layer"` starts from the stored statistics: the linear layer in front takes a and c in,
      and a `LayerNorm` follows that has on average the gain and bias to undo itself. With `data`,
      kernel, gain and bias are fitted to what the source puts out.
    - `to="cosine"` needs `data`: `CosineNorm(rescale=True)` around the linear layer in front, its
      kernel, gain and bias fitted to what the source puts out.

    With data, layer after layer is fitted on what the swapped model feeds it, other linear layers
    behind the first site included; a step is kept where it fits held-out rows better. A BatchNorm
    called with `training=True` has no stored form and is refused.

    The source model is not touched and shares no variable with the result. Layer names, weights,
    trainable flags, dtype policies, regularizers and the compile state (the optimizer's slots
    aside) are kept; what cannot be is in `report.notes`, new names are in `report.layers`.
    Before it returns, both models are run on seeded random inputs and compared at every site.

    Args:
        model: A built Functional or Sequential model, others nested in it included; or one with a
            `call` of its own, made of Keras layers and `keras.ops`, that was called before.
        to: "weight", "layer", "cosine", or a dict from site name to target; sites not named stay.
        data: Unlabeled calibration data: an array of inputs, a tuple, list or dictionary of arrays
            for several inputs, or an iterable of batches (`tf.data.Dataset`, `PyDataset`,
            generator), of which a tuple counts as (inputs, targets, …). A few hundred samples do.
        sites: Names of the sites to swap, or a predicate on a site's record (see
            `inspect_norms`); the others stay BatchNorm. None for all.
        damping: α ≥ 0: CosineNorm's damping becomes sqrt(α·mean‖x‖²) and LayerNorm's epsilon
            α·mean σ². At 0 the method is pure; as it grows it tends to the affine map.
        strict: Whether a refused site, or a model without BatchNorm, is an error.
        seed: Of the sampling of positions.
        batch_size: Of the batches that arrays are cut into.
        memory_budget: Bytes of activations to hold in memory; beyond it they go to temporary
            files, which are gone when the process ends, however it does.

    Returns:
        A `Swap` with `.model`, `.report`, `.differences` and `.compare(inputs)`.

    Raises:
        SwapError: If the model has no graph (subclassed or not built), a layer cannot be copied,
            `to` or `sites` name what does not exist, `strict` and something was refused, data is
            needed or does not fit the model, or an exact swap differs from the source by more
            than rounding.

    Example:

    >>> layers = keras.layers
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    ... )
    >>> swap = swap_norms(model, to="weight")
    >>> [type(layer).__name__ for layer in swap.model.layers]
    ['WeightNorm']
    """
    if not 0 <= damping < float("inf"):
        raise DataError(f"`damping` must be at least 0, and finite. Received: damping={damping}.")
    trees = graphs_of(model, match.holds_batch_norm)
    found, hidden = match.find_sites(trees)
    targets = _targets(to, sites, found, hidden, trees)
    plans = {
        site: _RULES[targets[site.name]].check(site, trees)
        for site in found
        if site.name in targets
    }
    records = [plans[site].record if site in plans else _left_record(site) for site in found]
    records += [_hidden_record(inner, to if isinstance(to, str) else "none") for inner in hidden]
    report = Report(trees.root.owner.name, to if isinstance(to, str) else "mixed", records)
    if strict:
        _insist(report)
    if data is None:
        _insist_on_data(report)
    edits, requests = _edits(found, plans, targets, damping)
    rebuilt = rebuild(trees, edits)
    if data is not None and requests:
        scores = calibrate(
            trees,
            rebuilt,
            [_wanted(name, request, rebuilt) for name, request in requests.items()],
            input_batches(trees.root, data, batch_size),
            damping=damping,
            seed=seed,
            memory_budget=memory_budget,
        )
        report.sites = [_fitted(record, scores) for record in report.sites]
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
    exact = all(record.verdict in ("exact", "refused") for record in report.sites)
    differences, uncompared = verify.insist(trees, twins, exact)
    lost = [
        note
        for site, plan in plans.items()
        for note in _RULES[targets[site.name]].lost(site, plan, trees)
    ]
    report.layers, report.notes = rebuilt.layers, lost + rebuilt.notes + uncompared
    return Swap(rebuilt.model, report, differences, trees, twins)


Edits = dict[Call, Skip | Replace]


def _edits(
    found: list[Site], plans: dict[Site, Plan], targets: dict[str, str], damping: float
) -> tuple[Edits, dict[str, FitRequest]]:
    """What to change in the model, and what data can do for it, by site."""
    edits: Edits = {}
    requests: dict[str, FitRequest] = {}
    shared: dict[tuple[int, str], Skip | Replace] = {}
    for site, plan in plans.items():
        rule = _RULES[targets[site.name]]
        kind = (id(site.layer), plan.record.rule)
        own = rule.rewrite(site, plan, _name_in_place(site, found, plans), damping)
        # one BatchNorm called in several places stays one layer
        in_place = own.get(site.call)
        again = isinstance(in_place, Replace) and kind in shared
        if isinstance(in_place, Replace):
            own[site.call] = shared.setdefault(kind, in_place)
        edits.update(own)
        request = rule.fit(site, plan, own)
        if request is not None and not again:
            requests[site.name] = request
    return edits, requests


def _wanted(name: str, request: FitRequest, rebuilt: Rebuilt) -> Wanted:
    plain = None if request.plain is None else rebuilt.copies[id(request.plain)]
    layer = rebuilt.copies[id(request.layer)]
    return Wanted(name, layer, request.target, request.source, plain)


def _fitted(record: SiteRecord, scores: dict[str, float]) -> SiteRecord:
    if record.name not in scores:
        return record
    return dataclasses.replace(record, verdict="calibrated", fit=scores[record.name])


def _insist_on_data(report: Report) -> None:
    needing = [site.name for site in report.sites if site.verdict == "calibrated"]
    if needing:
        raise DataError(
            "A swap to cosine norm needs data: stored statistics do not tell how long its inputs "
            f"are. Received data=None, for {len(needing)} BatchNorm calls.",
            model=report.model,
            hint="Give `data`, some hundred unlabeled inputs (--data X.npy).",
        )


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


def _name_in_place(site: Site, found: list[Site], plans: dict[Site, Plan]) -> str:
    """What to call a layer that stands where a BatchNorm stood: its name, unless that is taken.

    It is where the BatchNorm stays in another place, or is swapped by another rule there.
    """
    name = site.layer.name
    places = [plans.get(other) for other in found if other.layer is site.layer]
    stays = any(plan is None or plan.record.verdict == "refused" for plan in places)
    taken = {call.operation.name for call in site.graph.calls}
    while stays and name in taken:
        name += "_swapped"
    rules = dict.fromkeys(plan.record.rule for plan in places if plan and plan.in_place)
    number = [*rules, plans[site].record.rule].index(plans[site].record.rule)
    return name + (f"_{number + 1}" if number else "")


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
