"""Pictures by matplotlib, which is imported when one is drawn, without its global state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kerasnorm.atomic_files import replace_whole
from kerasnorm.errors import KerasNormError

NOT_INSTALLED = "A picture is drawn by matplotlib, which is not installed."
INSTALL = "Run: pip install 'matplotlib>=3.8'"
_SUFFIXES = (".pdf", ".png", ".svg")


def figure(**arguments: Any) -> Any:
    """A `matplotlib.figure.Figure`.

    Raises:
        KerasNormError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise KerasNormError(NOT_INSTALLED, hint=INSTALL) from error
    return Figure(**arguments)


def save(drawn: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure, whole or not at all.

    Raises:
        KerasNormError: If the suffix is of no picture, or the file cannot be written.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise KerasNormError(f"A picture is one of {_SUFFIXES}. Received: '{path}'.")
    with replace_whole(path) as temporary:
        drawn.savefig(temporary, dpi=110)
