"""Is every output written whole or not at all? Run `kerasnorm swap` on a disk that becomes full.

    python tools/fill_disk.py

A run has to end on a small disk that becomes full at one output after the other: with exit code 1,
one line on stderr, all outputs as they were and nothing beside them. This mounts a tmpfs, which
needs root; elsewhere a limit on the size of a file stands in. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from swap_runs import OUTPUTS, Folder, Sources, Way

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_ROOM = (errno.ENOSPC, errno.EFBIG)


class Full(NamedTuple):
    """A run on a disk that became full."""

    at: str
    """The output that could not be written, "" if the run ended well."""
    broken: list[str]
    """What is wrong."""


def full(folder: Folder, way: Way, said: Path) -> Full:
    """A run that may find no room: where it does not, all must be as it was.

    Args:
        folder: The outputs.
        way: How the run differs from an ordinary one.
        said: A file for what it prints, on another disk.
    """
    before = folder.hashes()
    process = folder.start(way, said)
    process.join()
    text, after = said.read_text(), folder.hashes()
    if process.exitcode == 0:
        folder.holds = 1 - folder.holds
        return Full("", [text] if text else [])
    broken = [] if process.exitcode == 1 else [f"it ended with {process.exitcode}"]
    broken += [f"{name} changed" for name in before if after.get(name) != before[name]]
    broken += [f"{name} was left" for name in after.keys() - before]
    at = [name for name in OUTPUTS.values() if f"'{folder.path / name}' could not be" in text]
    plain = text.startswith("kerasnorm: ") and text.count("\n") == 1
    if len(at) != 1 or not plain or not any(os.strerror(number) in text for number in _NO_ROOM):
        broken.append(f"it said: {text}")
    return Full(at[0] if at else "?", broken)


def limited(folder: Folder, name: str, said: Path) -> Full:
    """A run that may not write more than half of an output: as a full disk, without one."""
    largest = max(file.stat().st_size for file in folder.path.iterdir())
    size = largest if name == "out.onnx" else (folder.path / name).stat().st_size
    way = Way(folder.way.apart, folder.way.scarce, (Path(name).suffix, size // 2))
    return full(folder, way, said)


def full_disk(folder: Path, console: Console) -> bool:
    """The table of runs on a full disk; whether nothing was broken, and each output was hit."""
    sources = Sources(folder)
    result = Table(title="a full disk")
    for column in ("", "room, bytes", "full at", "wrong"):
        result.add_column(column)
    well = True
    ways = {"": Way(), "weights apart": Way(apart=True), "memory scarce": Way(scarce=True)}
    for title, way in ways.items():
        with small_disk(folder / "disk") as disk:
            place = Folder(folder / "disk", sources, way)
            runs = list(_filled(place, folder) if disk else _limited(place, folder))
        for room, found in runs:
            result.add_row(title, room, found.at or "nothing", "\n".join(found.broken))
        well &= not any(found.broken for _, found in runs)
        # What Keras needs for a while leaves room for all that follows.
        needed = {"out.keras"} if way.scarce and disk else set(OUTPUTS.values())
        well &= {found.at for _, found in runs} >= needed
    if not disk:
        console.print("No disk can be mounted here: a limit on the size of a file stands in.")
    console.print(result)
    console.print("all well" if well else "something is wrong, or an output was never hit")
    return well


def _limited(place: Folder, beside: Path) -> Iterator[tuple[str, Full]]:
    for name in OUTPUTS.values():
        yield f"half of {name}", limited(place, name, beside / "said")


def _filled(place: Folder, beside: Path) -> Iterator[tuple[str, Full]]:
    for room in rooms(place):
        state = os.statvfs(place.path)
        filler = place.path / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
        found = full(place, place.way, beside / "said")
        filler.unlink()
        yield f"{room:,}", found


def rooms(place: Folder) -> list[int]:
    """How much may be free, so that each file in turn finds none, little, or too little by one."""
    sizes = [(place.path / name).stat().st_size for name in ("out.keras", "out.json", "out.onnx")]
    sizes[2:2] = [file.stat().st_size for file in place.path.glob("weights-*")]
    if place.way.scarce:  # Keras's own file and the one it is copied to
        sizes = [sizes[0], sizes[0]]
    result, sum_ = [], 0
    for size in sizes:
        pages = math.ceil(size / _PAGE)
        result += [sum_ + part * _PAGE for part in (0, pages // 2, pages - 1)]
        sum_ += pages * _PAGE
    return [*sorted(set(result)), sum_ + 2**20]


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """A disk of 64 MB at a path, where one can be mounted; yields whether."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def main() -> int:
    """Print the table; 1 if anything is broken."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as name:
        return 0 if full_disk(Path(os.path.realpath(name)), console) else 1


if __name__ == "__main__":
    sys.exit(main())
