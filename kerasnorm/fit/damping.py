"""Choose the damping of a layer norm or cosine norm by held-out rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Keeping so much of an activation's variance is enough: less damping is preferred to more of it.
_ENOUGH = 0.99


def first_enough(scores: Iterable[float]) -> int:
    """Which R² is the first that is enough; where none is, which is the best.

    Args:
        scores: R² on held-out rows, from the least damping to the most. Those behind the first that
            is enough are not asked for.
    """
    seen = []
    for number, score in enumerate(scores):
        if score >= _ENOUGH:
            return number
        seen.append(score)
    return int(np.argmax(seen))
