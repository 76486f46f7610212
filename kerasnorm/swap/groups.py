"""How many groups of channels a group norm has: what may be asked for, and what "auto" tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kerasnorm.errors import DataError, SwapError, check_whole_number
from kerasnorm.swap.decide import Decision
from kerasnorm.targets.names import NAMES

Groups = int | Mapping[str, int] | Literal["auto"] | None
_TRIED = (1, 2, 4, 8, 16, 32)
# Below so many channels in a group, its mean and deviation say much of each.
_FEW = 8


def check_groups(groups: Any, to: str | Mapping[str, str]) -> None:
    """Refuse numbers of groups that are none, or that no target takes.

    Raises:
        DataError: If `groups` is neither a number of at least 1, a dict of such, "auto" nor None.
        SwapError: If it is given, and no site becomes group norm.
    """
    if groups is None:
        return
    if isinstance(groups, str):
        if groups != "auto":
            raise DataError(f"`groups` must be a number or 'auto'. Received: groups={groups!r}.")
    else:
        for number in groups.values() if isinstance(groups, Mapping) else [groups]:
            check_whole_number("groups", number, least=1)
    targets = to.values() if isinstance(to, Mapping) else (to,)
    if not any(isinstance(t, str) and t in NAMES and NAMES[t].has_groups for t in targets):
        raise SwapError(
            f"`groups` is for group norm. Received: groups={groups!r} with to={to!r}.",
            hint="Leave it out, or ask for to='group'.",
        )


def to_try(decision: Decision) -> list[Decision]:
    """The decision, and what others there are with each number that "auto" tries."""
    names = [site.name for site in decision.plans]
    found = {tuple(decision.groups.values()): decision}
    for number in _TRIED:
        other = decision.with_groups(dict.fromkeys(names, number))
        found.setdefault(tuple(other.groups.values()), other)
    return list(found.values())


def doubts(decision: Decision) -> list[str]:
    """That there are few channels in a group."""
    few = {
        site.name: plan.statistics.scale.size // plan.groups
        for site, plan in decision.plans.items()
        if plan.groups is not None and plan.groups > 1
    }
    few = {name: channels for name, channels in few.items() if channels < _FEW}
    if not few:
        return []
    names = ", ".join(f"{name} ({channels})" for name, channels in few.items())
    return [f"fewer than {_FEW} channels are in a group, which takes much of each away: {names}"]
