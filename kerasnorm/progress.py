"""A progress bar on standard error, for what takes more than a few seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import keras

_SECONDS = 3.0


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show how far something is once it has taken a few seconds; gone when it is done.

    Nothing is shown where standard error is not a terminal, or interactive logging is off
    (`keras.config.disable_interactive_logging`).

    Args:
        what: What is done, such as "training".
        steps: How many steps there are.

    Yields:
        A function to call after each step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    shown = console.is_terminal and keras.config.is_interactive_logging_enabled()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        disable=not shown,
        # rich would put its own streams in the place of the process's, for all threads
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(what, total=steps)
    began = time.monotonic()

    def advance() -> None:
        bar.advance(task)
        if not bar.live.is_started and time.monotonic() - began > _SECONDS:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
