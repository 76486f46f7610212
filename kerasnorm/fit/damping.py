"""Choose the damping of a layer norm or cosine norm by held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Keeping so much of an activation's variance is enough: less damping is preferred to more of it.
_ENOUGH = 0.99


def first_enough(scores: Sequence[float]) -> int:
    """Which R² is the first that is enough; where none is, which is the best.

    Args:
        scores: R² on held-out rows, from the least damping to the most.
    """
    enough = [number for number, score in enumerate(scores) if score >= _ENOUGH]
    return enough[0] if enough else int(np.argmax(scores))
