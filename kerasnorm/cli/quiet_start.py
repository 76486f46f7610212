"""Keras for the command line: imported when a command needs it, and without TensorFlow's log.

TF_CPP_MIN_LOG_LEVEL, which TensorFlow reads when it is imported, keeps off the terminal what it
says later, of an export too. While it is imported TensorFlow writes to file descriptor 2 whatever
that level (https://github.com/tensorflow/tensorflow/issues/100442).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def is_command_line() -> bool:
    """Whether this process was started as `kerasnorm …` or `python -m kerasnorm …`."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.stem == "kerasnorm" or program.parts[-2:] == ("tools", "swap_norms.py"):
        return True
    return sys.orig_argv[1:3] == ["-m", "kerasnorm"]


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2, from any language."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def import_keras() -> None:
    """Import Keras without what TensorFlow has to say meanwhile."""
    if sys.stderr is not None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        with silent_stderr():
            import keras  # noqa: F401
