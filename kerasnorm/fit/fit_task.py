"""A layer of a swapped model that is to be fitted, and what it stands for in the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kerasnorm.clone.rebuild import Rebuilt
from kerasnorm.graph.graph import Call
from kerasnorm.graph.steps import Steps


@dataclass(frozen=True, eq=False)
class FitTask:
    """A layer of the swapped model that is to do what a call of the source does.

    Attributes:
        site: Name of the BatchNorm call it was swapped for.
        layer: The LayerNorm or CosineNorm.
        target: The source's call whose output it is to give; with `source`, that call's input is
            taken, and the pre-activation that `source`, a linear layer, makes of it.
        source: See `target`.
        plain: The linear layer in front that is fitted with a LayerNorm.
        damping: What to try, from the least on: ε of a LayerNorm, shares of the mean ‖x‖² of a
            CosineNorm.
    """

    site: str
    layer: Any
    target: Call
    damping: tuple[float, ...]
    source: Any = None
    plain: Any = None

    def calls(self, rebuilt: Rebuilt, source: Steps, swapped: Steps) -> list[tuple[int, int]]:
        """The swapped model's steps that call the layer, and the source's that they stand for.

        Args:
            rebuilt: The swapped model.
            source: The source's steps.
            swapped: Those of the swapped model.
        """
        own = [n for n, step in enumerate(swapped.steps) if step.call.operation is self.layer]
        gives = {id(swapped.steps[n].call.output) for n in own}
        stands_for = {key for (_, key), tensor in rebuilt.tensors.items() if id(tensor) in gives}
        of_source = [
            n
            for n, step in enumerate(source.steps)
            if step.call.operation is self.target.operation and id(step.call.output) in stands_for
        ]
        return list(zip(own, of_source, strict=True))
