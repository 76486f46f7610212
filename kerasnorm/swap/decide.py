"""Decide what becomes of each site: ask the rules, and join their answers to one set of edits."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.clone.edits import Replace
from kerasnorm.clone.objects import LIBRARIES, module_of
from kerasnorm.errors import Refusal, SwapError
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import OpaqueBatchNorm, Site, find_sites
from kerasnorm.targets.names import NAMES
from kerasnorm.targets.plan import FitRequest, Plan
from kerasnorm.targets.registry import TARGETS
from kerasnorm.targets.site_record import SiteRecord
from kerasnorm.targets.target import Damping, Edits

# What stands in where a norm would do harm.
_EXACT = "weight"

SiteChoice = Collection[str] | Callable[[SiteRecord], bool]


@dataclass(frozen=True)
class Decision:
    """What becomes of each site of a model.

    Attributes:
        model_graphs: The model's graphs.
        sites: Every BatchNorm call that is seen.
        plans: The plan of each site that is swapped.
        records: One for each site, opaque ones included.
        named: Whether sites were named for what they become.
        doubts: What speaks against it.
    """

    model_graphs: ModelGraphs
    sites: list[Site]
    plans: dict[Site, Plan]
    records: list[SiteRecord]
    named: bool
    doubts: tuple[str, ...] = ()

    def instead(self, reasons: Mapping[str, str]) -> Decision:
        """A decision with weight norm, where that is possible, at the sites that have a reason.

        A reason is one for all calls that share a layer in the result.
        """
        shared = {
            (id(site.layer), plan.kind): reasons[site.name]
            for site, plan in self.plans.items()
            if site.name in reasons and plan.in_place
        }
        harms = {
            site: Refusal(reason)
            for site, plan in self.plans.items()
            if (reason := reasons.get(site.name) or shared.get((id(site.layer), plan.kind)))
        }
        plans = {
            site: _instead(plan, harms.get(site), self.model_graphs)
            for site, plan in self.plans.items()
        }
        now = {site.name: plans[site].record for site in harms}
        return dataclasses.replace(
            self,
            plans=plans,
            records=[now.get(record.name, record) for record in self.records],
            doubts=tuple(
                f"'{site.name}' stays {plans[site].becomes}, since it cannot be weight norm by "
                f"itself, though {harm.reason}"
                for site, harm in harms.items()
                if plans[site] is self.plans[site]
            ),
        )

    @property
    def groups(self) -> dict[str, int | None]:
        """How many groups of channels each site has that is swapped."""
        return {site.name: plan.groups for site, plan in self.plans.items()}

    def with_groups(self, groups: Mapping[str, int | None]) -> Decision:
        """A decision with other numbers of groups, by site, where the target has any.

        Calls of one layer get one number. A site where the number would do harm stays as it is.
        """
        of_layer = {
            (id(site.layer), plan.kind): groups[site.name]
            for site, plan in reversed(self.plans.items())
            if site.name in groups
        }
        plans = dict(self.plans)
        for site, plan in self.plans.items():
            kind = (id(site.layer), plan.kind)
            if kind in of_layer:
                target = TARGETS[plan.target]
                other = target.with_groups(plan, of_layer[kind])
                if self.named or target.harm(other, self.model_graphs) is None:
                    plans[site] = other
        now = {
            site.name: plan.record for site, plan in plans.items() if plan is not self.plans[site]
        }
        records = [now.get(record.name, record) for record in self.records]
        return dataclasses.replace(self, plans=plans, records=records)

    def carry_out(self, damping: Damping) -> tuple[Edits, dict[str, FitRequest]]:
        """What to change in the model, and what data can do for it, by site."""
        edits: Edits = {}
        requests: dict[str, FitRequest] = {}
        shared: dict[tuple[int, Any], Replace] = {}
        for site, plan in self.plans.items():
            target = TARGETS[plan.target]
            own = target.rewrite(plan, self._name_in_place(plan), damping)
            in_place, kind = own.get(site.call), (id(site.layer), plan.kind)
            again = kind in shared
            if isinstance(in_place, Replace):
                # one BatchNorm called in several places stays one layer
                own[site.call] = shared.setdefault(kind, in_place)
            edits.update(own)
            request = target.fit_request(plan, own, damping)
            if request is not None and not again:
                requests[site.name] = request
        return edits, requests

    def notes(self) -> list[str]:
        """What training the swapped model will not find again, in plain sentences."""
        plans = self.plans.values()
        notes = [note for p in plans for note in TARGETS[p.target].notes(p, self.model_graphs)]
        folded = (p.site.graph for p in plans if p.partner is not None)
        owners = {id(graph.owner): graph.owner for graph in folded if graph.is_code}
        return notes + [note for owner in owners.values() for note in _other_methods(owner)]

    def _name_in_place(self, plan: Plan) -> str:
        """What to call a layer that stands where a BatchNorm stood: its name, unless it is taken.

        It is where the BatchNorm stays in another place, or is swapped in another way there.
        """
        layer = plan.site.layer
        places = [site for site in self.sites if site.layer is layer]
        plans = [self.plans.get(site) for site in places]
        kinds = dict.fromkeys(p.kind for p in plans if p is not None and p.in_place)
        number = [*kinds, plan.kind].index(plan.kind)
        if None not in plans and not number:
            return layer.name
        name = layer.name + ("_swapped" if None in plans else "")
        name += f"_{number + 1}" if number else ""
        taken = {call.operation.name for site in places for call in site.graph.calls}
        while name in taken:
            name += "_"
        return name


def _other_methods(owner: keras.Layer) -> list[str]:
    """A note on methods that may use apart from its BatchNorm a layer that took that in."""
    names = {
        name
        for cls in type(owner).__mro__
        if module_of(cls) not in LIBRARIES
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and name[0] != "_" and not hasattr(keras.Model, name)
    }
    if not names:
        return []
    methods = ", ".join(f"`{name}`" for name in sorted(names))
    return [f"'{owner.name}': `call` gives what it gave; {methods} was not looked at"]


def decide(
    model_graphs: ModelGraphs,
    to: str | dict[str, str],
    sites: SiteChoice | None,
    groups: Mapping[str, int] | int | None = None,
) -> Decision:
    """Ask the target of each site; see `swap_norms` for `to`, `sites` and `groups`.

    Raises:
        SwapError: If `to`, `sites` or `groups` name what does not exist, or differ for the calls
            of a BatchNorm in a layer's own code.
    """
    found, opaque = find_sites(model_graphs)
    of_sites = groups if isinstance(groups, Mapping) else {site.name: groups for site in found}
    targets = _targets(to, sites, found, opaque, model_graphs)
    _check_names(set(of_sites), [site.name for site in found])
    _check_takes_groups(groups, targets)
    _check_one_in_code(found, targets, "target")
    _check_one_in_code(found, of_sites, "number of groups")
    named = sites is not None or isinstance(to, dict)
    decided = {
        site: TARGETS[targets[site.name]].check(site, model_graphs, of_sites.get(site.name))
        for site in found
        if site.name in targets
    }
    plans = {site: plan for site, plan in decided.items() if isinstance(plan, Plan)}
    if not named:
        plans = _without_harm(plans, model_graphs)
    records = [
        _record(site, targets[site.name], plans.get(site, decided[site]))
        if site in decided
        else _left_record(site)
        for site in found
    ]
    records += [_opaque_record(inner, targets.get(inner.name, "none")) for inner in opaque]
    return Decision(model_graphs, found, plans, records, named)


def _without_harm(plans: dict[Site, Plan], model_graphs: ModelGraphs) -> dict[Site, Plan]:
    """Weight norm where a target does harm."""
    found = {
        site: _instead(plan, TARGETS[plan.target].harm(plan, model_graphs), model_graphs)
        for site, plan in plans.items()
    }
    at_input = {
        site: _instead(plan, TARGETS[plan.target].harm_at_input(plan, model_graphs), model_graphs)
        for site, plan in found.items()
    }
    # a model with no other site gets what was asked for
    others = any(plan.verdict != "exact" for plan in at_input.values())
    return at_input if others else found


def _instead(plan: Plan, harm: Refusal | None, model_graphs: ModelGraphs) -> Plan:
    """Weight norm in the place of a plan that does harm, where that is possible."""
    site = plan.site
    calls = sum(call.operation is site.layer for call in site.graph.calls)
    if harm is None or (site.graph.is_code and calls > 1):  # of which all become the same
        return plan
    instead = TARGETS[_EXACT].check(site, model_graphs)
    if isinstance(instead, Refusal):
        return plan
    reason = f"{harm.reason} (name it in `sites` for {plan.target} norm all the same)"
    return dataclasses.replace(instead, asked=plan.target, reason=reason)


def _targets(
    to,
    sites: SiteChoice | None,
    found: list[Site],
    opaque: list[OpaqueBatchNorm],
    model_graphs: ModelGraphs,
) -> dict[str, str]:
    """The target of each site that is to be swapped, of those not seen too."""
    names = [*(site.name for site in found), *(inner.name for inner in opaque)]
    wanted: dict[str, Any] = dict(to) if isinstance(to, dict) else dict.fromkeys(names, to)
    for target in (*wanted.values(), *([] if isinstance(to, dict) else [to])):
        if not isinstance(target, str) or target not in TARGETS:
            raise SwapError(
                f"`to` must be one of {', '.join(repr(rule) for rule in TARGETS)}. "
                f"Received: to={target!r}."
            )
    if callable(sites):
        shown = [_checked(s, wanted[s.name], model_graphs) for s in found if s.name in wanted]
        shown += [_opaque_record(s, wanted[s.name]) for s in opaque if s.name in wanted]
        chosen = {record.name for record in shown if sites(record)}
    else:
        chosen = set(wanted) if sites is None else _site_names(sites)
    _check_names(chosen | set(wanted), names)
    return {name: target for name, target in wanted.items() if name in chosen}


def _site_names(sites: Any) -> set[str]:
    several = isinstance(sites, Iterable) and not isinstance(sites, str)
    listed: list[Any] = list(sites) if several else []
    if not several or not all(isinstance(name, str) for name in listed):
        raise SwapError(
            f"`sites` must be a list of names or a predicate. Received: sites={sites!r}.",
            hint=f"Write sites=[{sites!r}]." if isinstance(sites, str) else None,
        )
    return set(listed)


def _check_names(given: set[Any], names: list[str]) -> None:
    unknown = sorted(given - set(names), key=str)
    if unknown:
        raise SwapError(
            f"Sites must be BatchNorm calls of the model. Received: {unknown}.",
            hint=f"They are: {', '.join(names)}.",
        )


def _check_takes_groups(groups: Any, targets: Mapping[str, str]) -> None:
    others = [
        f"'{name}' ({targets.get(name, 'left as it is')})"
        for name in (groups if isinstance(groups, Mapping) else ())
        if name not in targets or not NAMES[targets[name]].has_groups
    ]
    if others:
        raise SwapError(
            "`groups` must name sites that become group norm. Received numbers for "
            f"{', '.join(others)}.",
            hint="Leave them out of `groups`, or ask for group norm there.",
        )


def _check_one_in_code(found: list[Site], values: Mapping[str, Any], what: str) -> None:
    chosen: dict[int, Any] = {}
    for site in found:
        value = values.get(site.name)
        if site.graph.is_code and chosen.setdefault(id(site.layer), value) != value:
            raise SwapError(
                f"The calls of a BatchNorm in a layer's own code must have one {what}, since its "
                f"attribute holds one layer. Received several for '{site.layer.name}'.",
                layer=site.layer.name,
                hint="Name all of its calls, or none.",
            )


def _checked(site: Site, target: str, model_graphs: ModelGraphs) -> SiteRecord:
    return _record(site, target, TARGETS[target].check(site, model_graphs))


def _record(site: Site, target: str, plan: Plan | Refusal) -> SiteRecord:
    if isinstance(plan, Plan):
        return plan.record
    return SiteRecord(site.name, target, "refused", f"to_{target}", "BatchNorm", reason=plan.reason)


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
