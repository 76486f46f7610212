"""`Target`: what a BatchNorm can become, as one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.model_input import is_model_input
from kerasnorm.graph.output_heads import before_probabilities
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.targets.plan import FitRequest, Plan, statistics_of_call

Edits = dict[Call, Skip | Replace]
# Gets a layer, its calls and the name of the plain layer that takes its place. Gives that layer,
# why there is none, or None for a layer that stays for now.
Fold = Callable[[Any, list[Call], str], Replace | Refusal | None]

# α in the order of trying, as shares of what a norm divides by; see `swap_norms`.
Damping = tuple[float, ...]


def harm_before_probabilities(plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
    """That a norm of each sample takes from logits how sure the model is."""
    if plan.verdict == "exact" or plan.site.call not in before_probabilities(model_graphs):
        return None
    return Refusal("what it puts out are logits, whose size says how sure the model is")


class Target(ABC):
    """A normalization that takes the place of BatchNorm. It holds no state.

    Attributes:
        name: What it is asked for by, such as "weight".
        folds: How each layer class that it brings becomes a plain Keras layer (`fold_norms`).
    """

    name: str
    folds: Mapping[type, Fold] = MappingProxyType({})

    def check(
        self, site: Site, model_graphs: ModelGraphs, groups: int | None = None
    ) -> Plan | Refusal:
        """Decide what becomes of a site; nothing is changed.

        Args:
            site: The site.
            model_graphs: The graphs it is in.
            groups: How many groups of channels are asked for, for a target that has any.
        """
        statistics = statistics_of_call(site, model_graphs)
        if isinstance(statistics, Refusal):
            return statistics
        plan = self.plan(site, model_graphs, statistics)
        return plan if isinstance(plan, Refusal) else self.with_groups(plan, groups)

    def with_groups(self, plan: Plan, groups: int | None) -> Plan:
        """A plan with this many groups of channels, where the target has any; None for as usual."""
        return plan

    @abstractmethod
    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        """The case of a site that runs on its stored statistics."""

    def harm(self, plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
        """Why this norm does harm at a site, which becomes weight norm unless it was asked for."""
        return None

    def harm_at_input(self, plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
        """The same of a site that reads the model's input, where others get the norm as well."""
        first = plan.calls[0].inputs[0]
        if plan.verdict == "exact" or not is_model_input(model_graphs, plan.site.graph, first):
            return None
        return Refusal("it reads the model's input, whose size (how bright, how loud) counts")

    @abstractmethod
    def rewrite(self, plan: Plan, name: str, damping: Damping) -> Edits:
        """The edits that carry out a plan.

        Args:
            plan: What `check` decided.
            name: For a layer in the BatchNorm's place.
            damping: Shares to choose from on data, from the least on; without, the last is taken.
        """

    def fit_request(
        self, plan: Plan, edits: Mapping[Call, Any], damping: Damping
    ) -> FitRequest | None:
        """What data can do for a site, given the edits that its plan was carried out by."""
        return None

    def notes(self, plan: Plan, model_graphs: ModelGraphs) -> list[str]:
        """What training the swapped model will not find again, in plain sentences."""
        return []
