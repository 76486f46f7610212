"""What a target decides for a BatchNorm call, and what data can do for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.clone.edits import Replace
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.linear_partner import Partner
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site, has_known_call
from kerasnorm.graph.stored_statistics import StoredStatistics, stored_statistics
from kerasnorm.targets.site_record import SiteRecord, Verdict


@dataclass(frozen=True, eq=False)
class Plan:
    """What a target's `check` decided for a site, and all that carrying it out needs.

    Attributes:
        site: The BatchNorm call.
        target: Name of the target.
        case: Which of the cases that the target's file numbers this is.
        verdict: What the swap is without data.
        becomes: The layer kind it turns into.
        statistics: What the BatchNorm computes.
        partner: The linear layer that takes it in, where one does.
        name: Of the layer that takes the partner's place.
        in_place: Whether a layer takes the BatchNorm's place; it is skipped otherwise.
        reason: Why this case and no other, for the report.
        asked: The target that was asked for, where it is another one.
        groups: How many groups of channels are normalized, each by itself; None for a target
            that has none.
    """

    site: Site
    target: str
    case: int
    verdict: Verdict
    becomes: str
    statistics: StoredStatistics
    partner: Partner | None = None
    name: str = ""
    in_place: bool = True
    reason: str = ""
    asked: str = ""
    groups: int | None = None

    @property
    def calls(self) -> list[Call]:
        """The calls that get other layers, in the graph's order."""
        calls = [self.site.call, *([] if self.partner is None else [self.partner.call])]
        return sorted(calls, key=self.site.graph.calls.index)

    @property
    def rule(self) -> str:
        """Target and case, as the report has them."""
        return f"to_{self.target} {self.case}"

    @property
    def kind(self) -> tuple[str, int | None]:
        """What calls of one BatchNorm have in common that become one layer."""
        return self.rule, self.groups

    @property
    def record(self) -> SiteRecord:
        """The plan as the report has it."""
        partner = self.partner
        return SiteRecord(
            self.site.name,
            self.asked or self.target,
            self.verdict,
            self.rule,
            self.becomes,
            partner=None if partner is None else partner.path,
            across=() if partner is None else partner.paths_across,
            reason=self.reason or _reason(partner),
            groups=self.groups,
        )


@dataclass(frozen=True, eq=False)
class FitRequest:
    """What data can do for a swapped site.

    Attributes:
        layer: The edit that makes the layer to be fitted.
        target: The source's call whose output that is to give; with `source`, the call's input
            is taken, and the pre-activation that `source`, a linear layer, makes of it.
        source: See `target`.
        damping: What to try, from the least on: ε of a LayerNorm, shares of the mean ‖x‖² of a
            CosineNorm.
        plain: The edit that makes the linear layer in front, to be fitted with a LayerNorm.
    """

    layer: Replace
    target: Call
    damping: tuple[float, ...]
    source: Any = None
    plain: Replace | None = None


def statistics_of_call(site: Site, model_graphs: ModelGraphs) -> StoredStatistics | Refusal:
    """The affine map a site computes at inference, or why it computes none.

    A BatchNorm that is frozen runs on its stored statistics in training as well.
    """
    # code cannot be told to use another layer for one call out of several
    calls = [call for call in site.graph.calls if call.operation is site.layer]
    together = calls if site.graph.is_code else [site.call]
    if site.layer.trainable and not model_graphs.trained.isdisjoint(together):
        return Refusal(_live(site, model_graphs))
    if not has_known_call(site.layer):
        return Refusal(f"{type(site.layer).__name__} computes in its own way")
    return stored_statistics(site.layer)


def _live(site: Site, model_graphs: ModelGraphs) -> str:
    """When the batch decides in a BatchNorm call that runs in training.

    `predict`, `evaluate` and export tell all layers of a graph that this is no training, whatever
    its calls say; what code tells the layers that it calls holds there too.
    """
    around = {id(site.graph.owner)}
    for graph in model_graphs.graphs.values():  # inner ones first
        if any(id(call.operation) in around for call in graph.calls):
            around.add(id(graph.owner))
    code = [graph for key, graph in model_graphs.graphs.items() if key in around and graph.is_code]
    if any(call.kwargs.get("training") for graph in code for call in graph.calls):
        return "it is called with training=True by code, so that its batch decides"
    return (
        "it is called with training=True: its batch decides in `model(x)`, its moving statistics "
        "in `predict`, `evaluate` and export. Freeze it (`trainable = False`) to have these "
        "everywhere"
    )


def names_output(site: Site, model_graphs: ModelGraphs) -> bool:
    """Whether an output of the model has the name of the BatchNorm."""
    return (
        site.graph is model_graphs.root
        and site.graph.is_output(site.call.output)
        and model_graphs.calls[id(site.layer)] == 1
    )


def name_of_partner(site: Site, partner: Partner, model_graphs: ModelGraphs) -> str:
    """The partner's own name, or the BatchNorm's where that names an output of the model."""
    takes_name = names_output(site, model_graphs) and not partner.commuted
    return site.layer.name if takes_name else partner.layer.name


def name_alone(site: Site) -> Replace:
    """In the place of a BatchNorm that was taken in, a layer that gives an output its name."""

    def make() -> keras.layers.Layer:
        # an Identity saves the name of a dtype, and no policy
        return keras.layers.Identity(name=site.layer.name, dtype=site.layer.compute_dtype)

    return Replace(make, lambda new: None)


def _reason(partner: Partner | None) -> str:
    if partner is None:
        return ""
    commuted = ", ".join(f"'{call.operation.name}'" for call in partner.commuted)
    return f"taken in by '{partner.layer.name}'" + (f", across {commuted}" if commuted else "")
