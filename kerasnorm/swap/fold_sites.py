"""`FoldedSites`: what becomes of each BatchNorm call while a model is folded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.clone.rebuild import Rebuilt
from kerasnorm.clone.rebuilds import Key, Rebuilds
from kerasnorm.compare.tensor_pairs import ModelPair, output_pairs
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.linear_partner import has_own_mask
from kerasnorm.graph.sites import OpaqueBatchNorm, Site, find_sites
from kerasnorm.layers import Affine
from kerasnorm.targets.fold import FoldTarget
from kerasnorm.targets.merge_affine import Merge
from kerasnorm.targets.site_record import SiteRecord
from kerasnorm.targets.target import Edits

_IN_FRONT, _BEHIND, _IN_PLACE = "fold 1", "fold 2", "fold 3"


class FoldedSites:
    """Every BatchNorm call of a model, and what takes it in.

    Args:
        steps: The model, not yet rebuilt. Whoever rebuilds it says so with `merged` or `in_place`
            before a step, and with `rebuilt` after it.

    Attributes:
        edits: What to do with the calls in the first step.
        notes: What training the folded model will not find again.
    """

    def __init__(self, steps: Rebuilds):
        self._steps = steps
        self._sites, opaque = find_sites(steps.source)
        self._records = {site.name: _opaque_record(site) for site in opaque}
        # the sites of each Affine, by the `id` of the layer or of the edit that makes it
        self._affines: dict[int, list[Site]] = {}
        # what no tensor of the result is, and what layers give that took in a map from behind
        self._moved: set[Key] = set()
        self._behind: set[Key] = set()
        self.edits: Edits = {}
        self.notes: list[str] = []
        self._fold_all()

    def _fold_all(self) -> None:
        target, source = FoldTarget(), self._steps.source
        found = {site: target.check(site, source) for site in self._sites}
        names = _Names(site for site, plan in found.items() if isinstance(plan, Refusal))
        shared: dict[tuple[int, int], Skip | Replace] = {}
        for site, plan in found.items():
            if isinstance(plan, Refusal):
                self._records[site.name] = _refused(site.name, plan.reason)
                continue
            self._records[site.name] = dataclasses.replace(plan.record, rule=_IN_FRONT)
            self.notes += target.notes(plan, source)
            if plan.partner is not None:
                edits = target.rewrite(plan, site.layer.name)
                crossed = (plan.partner.call, *plan.partner.commuted)
                self._moved |= {_key(site.graph, call.output) for call in crossed}
                edit = edits[plan.partner.call]
            else:
                # code cannot be told to use another layer for one call out of several
                place = site.layer if site.graph.is_code else site.call
                key = (id(site.graph.owner), id(place))
                if key not in shared:
                    shared[key] = target.rewrite(plan, names.free(site))[site.call]
                edit = shared[key]
                edits = {site.call: edit}
            self._affines.setdefault(id(edit), []).append(site)
            self.edits.update(edits)

    @property
    def records(self) -> list[SiteRecord]:
        """What became of each call, in the order of the graphs."""
        own = [self._records[site.name] for site in self._sites]
        seen = {record.name for record in own}
        return own + [record for name, record in self._records.items() if name not in seen]

    def merged(self, found: Iterable[Merge]) -> None:
        """What is going to be merged in the next step."""
        for merge in found:
            for tensor in merge.gone:
                self._moved |= self._steps.sources_of(merge.graph, tensor)
            if merge.is_behind:
                for call in merge.partners:
                    self._behind |= self._steps.sources_of(merge.graph, call.output)
            taken_over = self._affines.get(id(merge.affine.operation), [])
            path = self._steps.now.path
            partners = [call.operation for call in merge.partners]
            named = " and ".join(f"'{layer.name}'" for layer in partners)
            self._become(
                merge.affine.operation,
                rule=_BEHIND if merge.is_behind else _IN_FRONT,
                becomes=", ".join(dict.fromkeys(type(layer).__name__ for layer in partners)),
                partner=path(merge.graph, partners[0]),
                across=tuple(path(merge.graph, call.operation) for call in merge.across),
                reason=f"taken in by {named}{' behind it' if merge.is_behind else ''}",
            )
            for call, edit in merge.edits.items():
                # what is an Affine still goes on
                sites = [*self._affines.get(id(call.operation), []), *taken_over]
                if isinstance(edit, Replace) and type(call.operation) is Affine:
                    self._affines[id(edit)] = sites

    def in_place(self, edits: Edits) -> None:
        """The plain layers that each Affine that is left becomes in the next step."""
        kinds = {}
        for call, edit in edits.items():
            if isinstance(edit, Replace):
                layer = (edit.first or edit).make()
                kinds[id(call.operation)] = (call.operation, type(layer).__name__)
        for affine, kind in kinds.values():
            self._become(affine, rule=_IN_PLACE, becomes=kind)

    def own_masks(self) -> set[int]:
        """The `id` of what stands in the last copy for calls with a mask of their own.

        A copy names every mask, so that its own calls do not tell.
        """
        steps = self._steps
        return {
            id(steps.counterpart(graph, call.output))
            for graph in steps.source.graphs.values()
            for call in graph.calls
            if has_own_mask(call)
        }

    def rebuilt(self, rebuilt: Rebuilt) -> None:
        """A step is done."""
        self._affines = {
            id(copy): sites
            for own, sites in self._affines.items()
            if (copy := rebuilt.copies.get(own)) is not None
        }

    def pairs(self, classes: set[type]) -> ModelPair:
        """What to compare: each call that was folded, where what it gave is in the result still.

        A map that layers behind it took in is compared at what these give.

        Args:
            classes: The layers other than BatchNorm whose calls were folded.
        """
        steps, source = self._steps, self._steps.source
        axes = {_key(site.graph, site.call.output): (site.name, site.axis) for site in self._sites}
        pairs = []
        for graph in source.graphs.values():
            for call in graph.calls:
                for tensor in call.outputs:
                    key = _key(graph, tensor)
                    own = key in axes or type(call.operation) in classes or key in self._behind
                    if not own or key in self._moved:
                        continue
                    pair = ModelPair(source, {}, steps.counterpart, (), ()).pair(
                        source.path(graph, call.operation), graph, tensor
                    )
                    axis = getattr(call.operation, "axis", None)
                    if type(call.operation) is Affine and isinstance(axis, int):
                        pair = dataclasses.replace(pair, axis=axis)
                    name, axis = axes.get(key, (pair.name, pair.axis))
                    pairs.append(dataclasses.replace(pair, name=name, axis=axis))
        root = source.root
        outputs = output_pairs(root, steps.copies[id(root.owner)], known=pairs)
        return ModelPair(source, steps.copies, steps.counterpart, tuple(pairs), tuple(outputs))

    def _become(self, affine: Any, **changes: Any) -> None:
        for site in self._affines.get(id(affine), ()):
            self._records[site.name] = dataclasses.replace(self._records[site.name], **changes)


class _Names:
    """Names for layers in the place of BatchNorm calls, one for each graph and call."""

    def __init__(self, staying: Iterable[Site]):
        self._staying = {(id(site.graph.owner), site.layer.name) for site in staying}
        self._given: set[tuple[int, str]] = set()

    def free(self, site: Site) -> str:
        """The BatchNorm's own name, or that with a number where a call of it has that already."""
        graph, name, number = id(site.graph.owner), site.layer.name, 1
        beside = {call.operation.name for call in site.graph.calls} - {name}
        while (graph, name) in self._staying | self._given or name in beside:
            number += 1
            name = f"{site.layer.name}_{number}"
        self._given.add((graph, name))
        return name


def _key(graph: Graph, tensor: Any) -> Key:
    return id(graph.owner), id(tensor)


def _refused(name: str, reason: str, rule: str = "fold") -> SiteRecord:
    return SiteRecord(name, "fold", "refused", rule, "BatchNorm", reason=reason)


def _opaque_record(inner: OpaqueBatchNorm) -> SiteRecord:
    return _refused(inner.name, inner.reason, "graph")
