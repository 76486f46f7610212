"""What loading a file took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload


# No list, which Keras would replace by one of its own where it is an attribute of a model.
@dataclass(frozen=True, eq=False, repr=False)
class LoadReport(Sequence[str]):
    """The repairs that loading a file took: plain sentences, equal to a list of them.

    Attributes:
        repairs: Those sentences.
        holds: What the file holds and who wrote it, as a sentence.
        doubts: Why the model may answer otherwise than the file did.
        faults: What is wrong with the weights.
    """

    repairs: list[str]
    holds: str
    doubts: list[str]
    faults: list[str]

    @property
    def warnings(self) -> list[str]:
        """The doubts and the faults."""
        return [*self.doubts, *self.faults]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {"holds": self.holds, "repairs": self.repairs, "warnings": self.warnings}

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.repairs[index]

    def __len__(self) -> int:
        return len(self.repairs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, list | LoadReport):
            return self.repairs == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return repr(self.repairs)

    def __str__(self) -> str:
        repaired = (f"- repaired: {repair}" for repair in self)
        return "\n".join([self.holds, *repaired, *(f"- warning: {w}" for w in self.warnings)])
