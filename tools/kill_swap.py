"""Is every output written whole or not at all? Kill runs of `kerasnorm swap` at random moments.

    python tools/kill_swap.py [--rounds N] [--seed N]

Two models of 7 MB with different weights are swapped in turn to the same three outputs. Every other
run writes the weights of the ONNX model to a second file, as it is done beyond 2 GB. Each run gets
a SIGKILL: half of them at any time, half some milliseconds after a temporary file appeared, was
filled, or took its place. Then each output must be the file that was there, byte for byte, or one
that can be read and answers as the new model does. Every tenth run is the command itself. Linux
only.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from swap_runs import OUTPUTS, Folder, Sources, Way, wait_until

PHASES = (
    "before the first file", "model", "report", "ONNX", "between the renames", "all in place",
    "ended before the kill",
)  # fmt: skip
_SHORTLY = (0.001, 0.03)  # up to so many seconds after what a kill waits for


class Kill(NamedTuple):
    """What one kill left."""

    phase: str
    new: frozenset[str]
    """Names of the outputs that are new."""
    left: dict[str, int]
    """Sizes of the files that were left behind, by name."""
    broken: list[str]
    """What is wrong."""


def kill(folder: Folder, draw: random.Random, way: Way, duration: float) -> Kill:
    """Starts a run, kills it, and looks at what there is.

    Args:
        folder: The outputs.
        draw: Draws the moment.
        way: How to run.
        duration: How long that takes, in seconds.
    """
    folder.forget()
    before, identities = folder.hashes(), folder.identities()
    process = folder.start(way)
    if draw.random() < 0.5:
        time.sleep(draw.uniform(0, duration))
    else:
        wait_until(process, draw.choice(folder.moments()))
        time.sleep(draw.uniform(0, draw.choice(_SHORTLY)))
    process.kill()
    process.join()
    after = folder.hashes()
    new = frozenset(name for name, was in identities.items() if folder.identities()[name] != was)
    broken = [
        f"{name} is neither old nor new"
        for name, was in before.items()
        if name not in new and after.get(name) != was
    ]
    if process.exitcode not in (0, -signal.SIGKILL):
        broken.append(f"it ended with {process.exitcode}")
    for name in new:
        try:
            folder.sources.check(1 - folder.holds, folder.path / name)
        except Exception as failure:
            broken.append(f"{name}: {failure}")
    left = {
        name: (folder.path / name).stat().st_size
        for name in after.keys() - before
        if not name.startswith("weights-")
    }
    if "out.keras" in new:
        folder.holds = 1 - folder.holds
    return Kill(phase(process.exitcode, new, left), new, left, broken)


def phase(code: int, new: frozenset[str], left: Mapping[str, int]) -> str:
    """What a run was doing when it was killed, from what it left."""
    if code >= 0:
        return "ended before the kill"
    if new:
        return "all in place" if len(new) == len(OUTPUTS) else "between the renames"
    suffixes = {Path(name).suffix for name in left}
    for suffix, doing in ((".onnx", "ONNX"), (".json", "report"), (".keras", "model")):
        if suffix in suffixes:
            return doing
    return "before the first file"


def kills(folder: Path, rounds: int, seed: int, console: Console) -> bool:
    """The table of all kills; whether nothing was broken."""
    sources = Sources(folder)
    one = Folder(folder / "one", sources)
    two = Folder(folder / "two", sources, Way(apart=True))
    command = Way(command=True)
    runs = {
        "forked": (one, one.way, (one.until_writing, one.duration)),
        "weights apart": (two, two.way, (two.until_writing, two.duration)),
        "command": (one, command, one.undisturbed(command)),
    }
    for title, (_, _, (until_writing, duration)) in runs.items():
        console.print(
            f"undisturbed, {title}: {duration:.2f} s, the first file after {until_writing:.2f} s"
        )
    draw = random.Random(seed)
    done = []
    for number in range(rounds):
        title = "command" if number % 10 == 0 else ("forked", "weights apart")[number % 2]
        place, way, (_, duration) = runs[title]
        found = kill(place, draw, way, duration)
        done.append(found)
        for problem in found.broken:
            console.print(f"round {number}, {title}, {found.phase}: {problem}", markup=False)
    console.print(table(done))
    left = {name: size for found in done for name, size in found.left.items()}
    for place in (one, two):
        before = left.keys() & set(os.listdir(place.path))
        process = place.start()
        process.join()
        still = before & set(os.listdir(place.path))
        console.print(
            f"{len(before)} files of {sum(left[name] for name in before) / 1e6:.0f} MB were left; "
            f"after another run, which ended with {process.exitcode}, {len(still)} of them"
        )
    broken = sum(bool(found.broken) for found in done)
    console.print(f"{rounds} kills, {broken} with a broken output")
    return not broken


def table(done: list[Kill]) -> Table:
    """How many outputs are old and new, and what was left, by phase."""
    result = Table(title="kills by what the run was doing")
    for column in ("", "kills", *OUTPUTS.values(), "left", "MB", "broken"):
        result.add_column(column if "." not in column else f"{column}, old / new")
    for doing in (*PHASES, "all"):
        found = [one for one in done if doing in (one.phase, "all")]
        news = collections.Counter(name for one in found for name in one.new)
        left = [size for one in found for size in one.left.values()]
        result.add_row(
            doing,
            str(len(found)),
            *(f"{len(found) - news[name]} / {news[name]}" for name in OUTPUTS.values()),
            str(len(left)),
            f"{sum(left) / 1e6:.0f}",
            str(sum(bool(one.broken) for one in found)),
        )
    return result


def main() -> int:
    """Print the table; 1 if anything is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        return 0 if kills(folder, args.rounds, args.seed, console) else 1


if __name__ == "__main__":
    sys.exit(main())
