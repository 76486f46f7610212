"""How far the answers of a whole model agree with those of its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """How far the whole model agrees with its source, on samples held out.

    Neither the fits nor the training used them but to choose: which strength of a fit, and which
    epoch, to keep.

    Attributes:
        samples: How many these are.
        same_answers: The share of places where both say the same: the likeliest class of a
            softmax, yes or no of a sigmoid; None for models that end in neither.
        fit: R² of the outputs.
    """

    samples: int
    same_answers: float | None
    fit: float

    def __str__(self) -> str:
        same = "" if self.same_answers is None else f"{self.same_answers:.1%} same answers, "
        return f"on {self.samples} samples held out: {same}R² of the outputs {self.fit:.4f}"
