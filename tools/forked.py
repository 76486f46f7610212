"""Run a function in a fork of this process, within limits of time and memory. Linux only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

GIGABYTE = 1 << 30
_POLL = 0.01


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a command may take: seconds, and bytes of memory."""

    seconds: float = 30.0
    memory: int = 4 * GIGABYTE


@dataclasses.dataclass(frozen=True)
class Run:
    """How a process ended: its exit code, or minus the signal; what it said, and wrote."""

    code: int
    seconds: float
    memory: int
    stdout: str
    stderr: str
    written: frozenset[str] = frozenset()
    stopped: str = ""  # "hang" or "memory", where it had to be


def run_forked(work: Callable[[], int], temporary: Path, limits: Limits) -> Run:
    """Run a function in a fork of this process, and end it where it goes beyond the limits."""
    _check_unused_tensorflow()
    out, err = temporary / "stdout", temporary / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # threads of NumPy's, which starts its own after a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        start = time.monotonic()
        process = os.fork()
    if process == 0:
        _child(work, out, err, temporary)
    stopped = ""
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended:
            break
        if not stopped:
            if seconds > limits.seconds:
                stopped = "hang"
            elif _resident(process) > limits.memory:
                stopped = "memory"  # now, before the machine runs out of it
            if stopped:
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL)
    memory = usage.ru_maxrss << 10
    if memory > limits.memory and not stopped:
        stopped = "memory"
    code = os.waitstatus_to_exitcode(status)
    return Run(code, seconds, memory, _text(out), _text(err), stopped=stopped)


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _child(work: Callable[[], int], out: Path, err: Path, temporary: Path) -> None:
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
        for number, path in ((1, out), (2, err)):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        # A test's are not on these descriptors.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        code = work()
    except BaseException:  # nothing of this process may run on in its copy
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _check_unused_tensorflow() -> None:
    """Only a process that has not computed anything is forked."""
    from tensorflow.python.eager import context

    made = context.context_safe()
    if made is not None and made._initialized:
        raise RuntimeError("TensorFlow has run in this process; run the tool in one of its own.")


def _resident(process: int) -> int:
    """The bytes of memory that a process has now; 0 if it is gone."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()
