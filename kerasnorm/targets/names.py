"""What the targets are called and need, for what has to know it before Keras is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetName:
    """What is said of a target on the command line.

    Attributes:
        help: What it is.
        takes_data: Whether it is fitted to data; what is exact without has no use for any.
    """

    help: str
    takes_data: bool = True


NAMES = {
    "weight": TargetName("weight norm: exact, without data", takes_data=False),
    "layer": TargetName("layer norm: from stored statistics, better fitted to data"),
    "cosine": TargetName("cosine norm: fitted to data, which it needs"),
}
