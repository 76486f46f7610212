"""What every rule starts from: what a site computes, and whether that can be kept at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kerasnorm.clone.rebuild import Replace
from kerasnorm.graph import sites
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import NoPartner, Partner, Site, Statistics
from kerasnorm.targets.site_record import SiteRecord, Verdict


@dataclass(frozen=True)
class Plan:
    """What a rule's `check` decided for a site, and what its `rewrite` needs to do it.

    Attributes:
        record: For the report.
        statistics: What the BatchNorm computes; None for a refused site.
        partner: The linear layer that takes it in, where one does.
        name: Of the layer that takes the partner's place.
        in_place: Whether a layer takes the BatchNorm's place; it is skipped otherwise.
    """

    record: SiteRecord
    statistics: Statistics | None = None
    partner: Partner | None = None
    name: str = ""
    in_place: bool = True


@dataclass(frozen=True, eq=False)
class FitRequest:
    """What data can do for a swapped site.

    Attributes:
        layer: The edit that makes the layer to be fitted.
        target: The source's call whose output that is to give; with `source`, the call's input
            is taken, and the pre-activation that `source`, a linear layer, makes of it.
        source: See `target`.
        plain: The edit that makes the linear layer in front, to be fitted with a LayerNorm.
    """

    layer: Replace
    target: Call
    source: Any = None
    plain: Replace | None = None


def stored_statistics(site: Site, model_graphs: ModelGraphs) -> Statistics | str:
    """The affine map a site computes at inference, or why it computes none."""
    # code cannot be told to use another layer for one call out of several
    calls = [call for call in site.graph.calls if call.operation is site.layer]
    together = calls if site.graph.is_code else [site.call]
    if (
        any(c.kwargs.get("training") for c in together)
        or id(site.graph.owner) in model_graphs.called_in_training
    ):
        return "it is called with training=True, so that its batch decides"
    if not sites.has_known_call(site.layer):
        return f"{type(site.layer).__name__} computes in its own way"
    return sites.statistics(site.layer)


def refused(site: Site, target: str, reason: str) -> Plan:
    """The plan for a site that stays as it is."""
    return Plan(
        SiteRecord(site.name, target, "refused", f"to_{target}", "BatchNorm", reason=reason)
    )


def record(
    site: Site,
    target: str,
    verdict: Verdict,
    case: int,
    becomes: str,
    partner: Partner | NoPartner,
    reason: str | None = None,
) -> SiteRecord:
    """The record of a site that is swapped by a numbered case of a rule."""
    rule = f"to_{target} {case}"
    if isinstance(partner, NoPartner):
        return SiteRecord(site.name, target, verdict, rule, becomes, reason=partner.reason)
    taken_in = f"taken in by '{partner.layer.name}'"
    commuted = ", ".join(f"'{call.operation.name}'" for call in partner.commuted)
    return SiteRecord(
        site.name,
        target,
        verdict,
        rule,
        becomes,
        partner=partner.path,
        across=partner.paths_across,
        reason=reason or taken_in + (f", across {commuted}" if commuted else ""),
    )


def name_of_partner(site: Site, partner: Partner, model_graphs: ModelGraphs) -> str:
    """The partner's own name, or the BatchNorm's where that names an output of the model."""
    names_output = (
        site.graph is model_graphs.root
        and not partner.commuted
        and site.graph.is_output(site.call.output)
        and model_graphs.calls[id(site.layer)] == 1
    )
    return site.layer.name if names_output else partner.layer.name
