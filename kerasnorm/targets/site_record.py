"""What became of one BatchNorm call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["exact", "matched", "calibrated", "refused"]


@dataclass(frozen=True)
class SiteRecord:
    """The fate of one BatchNorm call.

    Attributes:
        name: Path of the BatchNorm layer; a second call of one layer is "name#2".
        target: What was asked for, such as "layer", "fold" where it was folded, or "none" for a
            site left out.
        verdict: `exact`; `matched` from stored statistics; `calibrated` on data; `refused`.
        rule: Name of the rule that decided, with the number of its case.
        becomes: The layer kind it turned into; "BatchNorm" where it stays.
        partner: Path of the layer that took it in, or None.
        across: Paths of the layers between the two, the one next to the BatchNorm first.
        reason: Why this rule: what stood in the way of a better one, or of any.
        fit: R² against the source's activation on samples held out, where data was given: of the
            whole swapped model in the end, if it is small enough for that; otherwise of the fit of
            this site, on what the model in front of it put out.
        damping: What α of `swap_norms` its norm has; None where there is none.
        groups: How many groups of channels its norm has; None where it is no group norm.
    """

    name: str
    target: str
    verdict: Verdict
    rule: str
    becomes: str
    partner: str | None = None
    across: tuple[str, ...] = ()
    reason: str = ""
    fit: float | None = None
    damping: float | None = None
    groups: int | None = None
