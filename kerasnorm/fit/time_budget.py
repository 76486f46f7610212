"""How many seconds a calibration may take, and what is left of them."""

from __future__ import annotations

import math
import numbers
import time
from typing import Any

from kerasnorm.errors import DataError

# Shares of what is left, for each stage when it begins, and of all for what follows the training.
SENSITIVITY, FITTING, TRAINING, RESERVE = 0.2, 0.4, 0.8, 0.1


class TimeBudget:
    """Seconds of wall-clock time from now on, or any number of them.

    Args:
        seconds: How many; None for no limit.

    Raises:
        DataError: If they are no number above 0.

    Example:

    >>> TimeBudget(None).left
    inf
    >>> TimeBudget(60.0).left <= 60.0
    True
    """

    def __init__(self, seconds: Any = None) -> None:
        number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
        if seconds is not None and not (number and seconds > 0):
            raise DataError(
                "`time_budget` must be a number of seconds above 0, or None. Received: "
                f"time_budget={seconds!r}."
            )
        self.seconds: float = math.inf if seconds is None else float(seconds)
        self._end = time.monotonic() + self.seconds

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.seconds)

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self._end - time.monotonic())

    def affords(self, seconds: float, share: float = 1.0) -> float:
        """How often something that takes so long fits into a share of what is left."""
        return share * self.left / max(seconds, 1e-9) if self.is_limited else math.inf

    def is_over(self, reserve: float = 0.0) -> bool:
        """Whether no more than a share of all of it is left."""
        return self.is_limited and self.left <= reserve * self.seconds
