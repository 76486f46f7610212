"""BatchNorm as a map that other layers take in: exact at inference, without data.

At inference BatchNorm is the affine map y = γ(x − m)/s + β with s = sqrt(v + ε), that is
y = a·x + c with a = γ/s and c = β − m·a, one of each per channel.

1. Behind a linear layer x = W·u + b₀ of its own, that layer takes it in, W ← a·W and
   b₀ ← c + a·b₀ (`targets.fold_into`).
2. Anywhere else the map stays where it is, as an `Affine`, which `targets.merge_affine` may find
   a place for in the layers behind, and which is a plain layer else (`targets.plain`).

A call fixed to `training=True` normalizes by its batch, in `model(x)` at least: refused.
"""

from __future__ import annotations

from kerasnorm.clone.edits import Skip
from kerasnorm.errors import Refusal
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.targets import fold_into
from kerasnorm.targets.plan import Plan, name_alone, name_of_partner, names_output
from kerasnorm.targets.target import Damping, Edits, Target


class FoldTarget(Target):
    """BatchNorm to nothing but a linear layer, or to an `Affine`. What `fold_norms` starts from."""

    name = "fold"

    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        partner = fold_into.partner_of(site, model_graphs, statistics)
        if isinstance(partner, Refusal):
            return Plan(site, self.name, 2, "exact", "Affine", statistics, reason=partner.reason)
        return Plan(
            site,
            self.name,
            1,
            "exact",
            type(partner.layer).__name__,
            statistics,
            partner,
            name_of_partner(site, partner, model_graphs),
            in_place=names_output(site, model_graphs) and bool(partner.commuted),
        )

    def rewrite(self, plan: Plan, name: str, damping: Damping = ()) -> Edits:
        """The edits of a plan; there is nothing to damp."""
        site, partner = plan.site, plan.partner
        if partner is None:
            return {site.call: fold_into.as_affine(site, name, plan.statistics)}
        return {
            partner.call: fold_into.with_map_folded_in(partner, plan.statistics, plan.name),
            site.call: name_alone(site) if plan.in_place else Skip(into=plan.name),
        }

    def notes(self, plan: Plan, model_graphs: ModelGraphs) -> list[str]:
        return fold_into.lost_penalties(plan.site, ("gamma", "beta"))
