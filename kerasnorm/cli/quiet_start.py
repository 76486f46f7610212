"""Keeps TensorFlow's C++ log off the terminal where kerasnorm is the command being run.

TF_CPP_MIN_LOG_LEVEL, which TensorFlow reads when it is imported, does so for what it says later,
of an export too. While it is imported TensorFlow writes to file descriptor 2 whatever that level
(https://github.com/tensorflow/tensorflow/issues/100442), and `import kerasnorm` imports it before
the command line's own code gets a turn. In every other process this module does nothing, and
TensorFlow logs as it does in any program.
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


if is_command_line() and "--debug" not in sys.argv and sys.stderr is not None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with silent_stderr():
        import keras  # noqa: F401
