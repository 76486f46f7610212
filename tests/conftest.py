"""Let a run of the slow tests end in time: what is left when it is over is skipped, and said."""

from __future__ import annotations

import os
import time

import pytest

from kerasnorm.calibrate.reconstruct import Reconstruction

MINUTES = float(os.environ.get("KERASNORM_SLOW_MINUTES", "inf"))
_START = time.monotonic()


@pytest.fixture
def closed_form(monkeypatch):
    """Swaps with data end with the closed-form fits, without the training after them."""
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)


def pytest_runtest_setup(item):
    over = time.monotonic() - _START > 60 * MINUTES
    if over and item.get_closest_marker("slow"):
        pytest.skip(f"the {MINUTES:g} minutes for slow tests (KERASNORM_SLOW_MINUTES) are over")
