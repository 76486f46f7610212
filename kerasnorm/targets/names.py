"""What the targets are called and need, for what has to know it before Keras is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetName:
    """What is said of a target on the command line.

    Attributes:
        help: What it is.
        takes_data: Whether it is fitted to data; what is exact without has no use for any.
        has_groups: Whether it normalizes groups of channels.
    """

    help: str
    takes_data: bool = True
    has_groups: bool = False


NAMES = {
    "weight": TargetName("weight norm: exact, without data", takes_data=False),
    "layer": TargetName("layer norm: from stored statistics, better fitted to data"),
    "group": TargetName("group norm: as layer norm, over groups of channels", has_groups=True),
    "cosine": TargetName("cosine norm: fitted to data, which it needs"),
}
