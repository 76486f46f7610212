"""Functions in processes of their own, forked off one that has imported everything. Linux only."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

GIGABYTE = 1 << 30
_POLL = 0.01
_NOWHERE = Path(os.devnull)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "kerasnorm.cli.main",
        "kerasnorm.onnx.export",
        "tf2onnx.tfonnx",
        "onnxruntime",
        "h5py",
        "rich.table",
    ]
)


@dataclass(frozen=True)
class Limits:
    """What a process may take: seconds, and bytes of memory."""

    seconds: float = 30.0
    memory: int = 4 * GIGABYTE


@dataclass(frozen=True)
class Run:
    """How a process ended: its exit code, or minus the signal; what it said, and wrote."""

    code: int
    seconds: float
    memory: int
    stdout: str
    stderr: str
    written: frozenset[str] = frozenset()
    stopped: str = ""  # "hang" or "memory", where it had to be


@functools.cache
def import_everything() -> None:
    """Start the process that others are forked off, and wait until the first of them is over."""
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(folder for folder in folders if folder)
    with mock.patch.dict(os.environ, PYTHONPATH=path, TF_CPP_MIN_LOG_LEVEL="3"):
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=int)
    process.start()
    process.join()


def start(
    function: Callable[..., int],
    *arguments: Any,
    temporary: Path,
    stdout: Path = _NOWHERE,
    stderr: Path = _NOWHERE,
) -> Any:
    """A process that calls a function, whose result is its exit code.

    Args:
        function: That a module has by name.
        *arguments: For it.
        temporary: A folder for its temporary files.
        stdout: A file for what it prints.
        stderr: The same, which may be the same file.
    """
    import_everything()
    for path in {stdout, stderr} - {_NOWHERE}:
        path.unlink(missing_ok=True)
    process = _CONTEXT.Process(
        target=_call, args=(function, arguments, temporary, stdout, stderr), daemon=True
    )
    process.start()
    return process


def run(function: Callable[..., int], *arguments: Any, temporary: Path, limits: Limits) -> Run:
    """Call a function in a process, and end it where it goes beyond the limits."""
    stdout, stderr = temporary / "stdout", temporary / "stderr"
    process = start(function, *arguments, temporary=temporary, stdout=stdout, stderr=stderr)
    begin, stopped, memory = time.monotonic(), "", 0
    while process.exitcode is None:
        process.join(_POLL)
        memory = max(memory, _peak(process.pid))
        if not stopped:
            if time.monotonic() - begin > limits.seconds:
                stopped = "hang"
            elif memory > limits.memory:
                stopped = "memory"  # now, before the machine runs out of it
            if stopped:
                process.kill()
    seconds = time.monotonic() - begin
    return Run(process.exitcode, seconds, memory, _text(stdout), _text(stderr), stopped=stopped)


def _call(
    function: Callable[..., int],
    arguments: tuple[Any, ...],
    temporary: Path,
    stdout: Path,
    stderr: Path,
) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    for number, path in ((1, stdout), (2, stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.exit(function(*arguments))


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _peak(process: int) -> int:
    """The most bytes of memory that a process has had so far; 0 if it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else 0
