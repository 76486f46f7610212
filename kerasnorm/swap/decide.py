"""Decide what becomes of each site: ask the rules, and join their answers to one set of edits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from kerasnorm.clone.rebuild import Replace, Skip
from kerasnorm.errors import SwapError
from kerasnorm.graph import sites as match
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import OpaqueBatchNorm, Site
from kerasnorm.targets import RULES
from kerasnorm.targets.plan import FitRequest, Plan
from kerasnorm.targets.site_record import SiteRecord

SiteChoice = Collection[str] | Callable[[SiteRecord], bool]
Edits = dict[Call, Skip | Replace]


@dataclass(frozen=True)
class Decision:
    """What becomes of each site of a model.

    Attributes:
        model_graphs: The model's graphs.
        sites: Every BatchNorm call that is seen.
        plans: The plan of each site that is to be swapped.
        targets: Its target, by the site's name.
        records: One for each site, opaque ones included.
    """

    model_graphs: ModelGraphs
    sites: list[Site]
    plans: dict[Site, Plan]
    targets: dict[str, str]
    records: list[SiteRecord]

    def carry_out(self, damping: float) -> tuple[Edits, dict[str, FitRequest]]:
        """What to change in the model, and what data can do for it, by site."""
        edits: Edits = {}
        requests: dict[str, FitRequest] = {}
        shared: dict[tuple[int, str], Replace] = {}
        for site, plan in self.plans.items():
            rule = RULES[self.targets[site.name]]
            own = rule.rewrite(site, plan, self._name_in_place(site), damping)
            in_place, kind = own.get(site.call), (id(site.layer), plan.record.rule)
            again = kind in shared
            if isinstance(in_place, Replace):
                # one BatchNorm called in several places stays one layer
                own[site.call] = shared.setdefault(kind, in_place)
            edits.update(own)
            request = rule.fit(site, plan, own)
            if request is not None and not again:
                requests[site.name] = request
        return edits, requests

    def lost(self) -> list[str]:
        """What training the swapped model would not find again, in plain sentences."""
        return [
            note
            for site, plan in self.plans.items()
            for note in RULES[self.targets[site.name]].lost(site, plan, self.model_graphs)
        ]

    def _name_in_place(self, site: Site) -> str:
        """What to call a layer that stands where a BatchNorm stood: its name, unless it is taken.

        It is where the BatchNorm stays in another place, or is swapped by another rule there.
        """
        name = site.layer.name
        places = [self.plans.get(other) for other in self.sites if other.layer is site.layer]
        stays = any(plan is None or plan.record.verdict == "refused" for plan in places)
        taken = {call.operation.name for call in site.graph.calls}
        while stays and name in taken:
            name += "_swapped"
        rule = self.plans[site].record.rule
        swapped = [plan for plan in places if plan and plan.record.verdict != "refused"]
        rules = dict.fromkeys(plan.record.rule for plan in swapped if plan.in_place)
        number = [*rules, rule].index(rule)
        return name + (f"_{number + 1}" if number else "")


def decide(
    model_graphs: ModelGraphs, to: str | dict[str, str], sites: SiteChoice | None
) -> Decision:
    """Ask the rule of each site's target; see `swap_norms` for `to` and `sites`.

    Raises:
        SwapError: If `to` or `sites` name what does not exist, or give different targets to the
            calls of a BatchNorm in a layer's own code.
    """
    found, opaque = match.find_sites(model_graphs)
    targets = _targets(to, sites, found, opaque, model_graphs)
    plans = {
        site: RULES[targets[site.name]].check(site, model_graphs)
        for site in found
        if site.name in targets
    }
    _check_one_target_in_code(found, targets)
    records = [plans[site].record if site in plans else _left_record(site) for site in found]
    records += [_opaque_record(inner, to if isinstance(to, str) else "none") for inner in opaque]
    return Decision(model_graphs, found, plans, targets, records)


def _targets(
    to,
    sites: SiteChoice | None,
    found: list[Site],
    opaque: list[OpaqueBatchNorm],
    model_graphs: ModelGraphs,
) -> dict[str, str]:
    """The target of each site that is to be swapped."""
    names = [site.name for site in found]
    wanted: dict[str, Any] = dict(to) if isinstance(to, dict) else dict.fromkeys(names, to)
    for target in (*wanted.values(), *([] if isinstance(to, dict) else [to])):
        if not isinstance(target, str) or target not in RULES:
            raise SwapError(
                f"`to` must be one of {', '.join(repr(rule) for rule in RULES)}. "
                f"Received: to={target!r}."
            )
    if callable(sites):
        chosen = {
            site.name
            for site in found
            if site.name in wanted
            and sites(RULES[wanted[site.name]].check(site, model_graphs).record)
        }
    elif isinstance(sites, str):
        raise SwapError(
            f"`sites` must be a list of names or a predicate. Received: sites={sites!r}.",
            hint=f"Write sites=[{sites!r}].",
        )
    else:
        chosen = set(wanted if sites is None else sites)
    unknown = sorted((chosen | set(wanted)) - set(names) - {inner.name for inner in opaque})
    if unknown:
        raise SwapError(
            f"Sites must be BatchNorm calls of the model. Received: {unknown}.",
            hint=f"They are: {', '.join(names)}.",
        )
    return {name: target for name, target in wanted.items() if name in chosen}


def _check_one_target_in_code(found: list[Site], targets: dict[str, str]) -> None:
    chosen: dict[int, str | None] = {}
    for site in found:
        target = targets.get(site.name)
        if site.graph.is_code and chosen.setdefault(id(site.layer), target) != target:
            raise SwapError(
                "The calls of a BatchNorm in a layer's own code must have one target, since its "
                f"attribute holds one layer. Received several for '{site.layer.name}'.",
                layer=site.layer.name,
                hint="Name all of its calls, or none.",
            )


def _left_record(site: Site) -> SiteRecord:
    return SiteRecord(site.name, "none", "refused", "sites", "BatchNorm", reason="not asked for")


def _opaque_record(inner: OpaqueBatchNorm, target: str) -> SiteRecord:
    return SiteRecord(
        inner.name,
        target,
        "refused",
        "graph",
        "BatchNorm",
        reason=inner.reason,
    )
