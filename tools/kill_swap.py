"""Is every output written whole or not at all? Kill runs of `kerasnorm swap`, and fill the disk.

    python tools/kill_swap.py [--rounds N] [--seed N]
    python tools/kill_swap.py --full-disk

Two models of 7 MB with different weights are swapped in turn to the same three outputs. Every other
run writes the weights of the ONNX model to a second file, as it is done beyond 2 GB. Each run gets
a SIGKILL: half of them at any time, half some milliseconds after a temporary file appeared, was
filled, or took its place. Then each output must be the file that was there, byte for byte, or one
that can be read and answers as the new model does. Most runs are forked off a process that has
imported everything; every tenth is the command itself.

With --full-disk, a run has to end on a small disk that becomes full at one output after the other:
with exit code 1, one line on stderr, all outputs as they were and nothing beside them. That mounts
a tmpfs, which needs root; elsewhere a limit on the size of a file stands in. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import gc
import hashlib
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import onnxruntime
from keras import layers
from rich.console import Console
from rich.table import Table

import kerasnorm
from kerasnorm import cli, files
from kerasnorm.onnx import export, trace

OUTPUTS = {"--output": "out.keras", "--report": "out.json", "--onnx": "out.onnx"}
PHASES = (
    "before the first file", "model", "report", "ONNX", "between the renames", "all in place",
    "ended before the kill",
)  # fmt: skip
_INPUT = (16, 16, 3)
_FILTERS = (32, 32, 64, 64, 128, 128, 128, 128)
_SITES = len(_FILTERS) + 1
# Imports everything once and does nothing else: in a child of a process that has run a TensorFlow
# operation the next one hangs.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(
    [
        "kerasnorm.cli",
        "kerasnorm.onnx.export",
        "tf2onnx.tfonnx",
        "onnxruntime",
        "h5py",
        "rich.table",
    ]
)
_SHORTLY = (0.001, 0.03)  # up to so many seconds after what a kill waits for
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_ROOM = (errno.ENOSPC, errno.EFBIG)


@dataclass(frozen=True)
class Way:
    """How a run differs from an ordinary one.

    Args:
        apart: Whether weights go to a second file, as they do beyond 2 GB.
        scarce: Whether memory is said to be so, which makes Keras write a file of its own.
        limit: The suffix of an output and how long a file may be from there on.
        command: Whether to run the command itself, which takes none of the above.
    """

    apart: bool = False
    scarce: bool = False
    limit: tuple[str, int] | None = None
    command: bool = False


class Sources:
    """Two models of the same layers and different weights, as files, and what they answer."""

    def __init__(self, folder: Path):
        self.x = np.random.default_rng(0).normal(size=(2, *_INPUT)).astype("float32")
        self.paths, self.answers = [], []
        for number in range(2):
            keras.utils.set_random_seed(number)
            model = network()
            self.paths.append(folder / f"model{number}.keras")
            model.save(self.paths[-1])
            self.answers.append(np.asarray(model(self.x)))

    def check(self, number: int, path: Path) -> None:
        """Raise unless a file is whole and says what it should of a model."""
        if path.suffix == ".json":
            if len(json.loads(path.read_text())["sites"]) != _SITES:
                raise ValueError(f"{path} lacks sites")
            return
        answer = self._of_keras(path) if path.suffix == ".keras" else self._of_onnx(path)
        np.testing.assert_allclose(answer, self.answers[number], rtol=1e-2, atol=1e-3)

    def _of_keras(self, path: Path) -> np.ndarray:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{path} holds a damaged {damaged}")
        return np.asarray(kerasnorm.load_model(path)(self.x))

    def _of_onnx(self, path: Path) -> np.ndarray:
        onnx.load(path)
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: self.x})[0]


def network() -> keras.Model:
    """A convolutional network of some megabytes with BatchNorm behind everything."""
    x = inputs = keras.Input(_INPUT, name="image")
    for number, filters in enumerate(_FILTERS):
        convolution = layers.Conv2D(filters, 3, 1 + (number in (2, 4)), "same", use_bias=False)
        x = layers.ReLU()(layers.BatchNormalization(name=f"bn{number}")(convolution(x)))
    x = layers.Dense(512)(layers.Flatten()(x))
    x = layers.BatchNormalization(name="bn")(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="net")


def start(model: Path, folder: Path, way: Way = Way(), said: Path | None = None) -> Any:
    """A process that swaps a model to the three outputs in a folder.

    Args:
        model: The file.
        folder: Where the outputs go.
        way: How it differs from an ordinary run.
        said: A file for what it prints; None for nowhere.
    """
    arguments = ["swap", str(model), "--to", "weight", "--force", "--quiet"]
    for option, name in OUTPUTS.items():
        arguments += [option, str(folder / name)]
    process = _WARM.Process(target=_run, args=(arguments, way, said or Path(os.devnull)))
    process.start()
    return process


def _run(arguments: list[str], way: Way, said: Path) -> None:
    # TensorFlow writes files that it removes when a process ends by itself.
    os.environ["TMPDIR"] = tempfile.tempdir = os.path.dirname(arguments[1])
    with open(said, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if way.command:
        os.execv(sys.executable, [sys.executable, "-m", "kerasnorm", *arguments])
    if way.apart:
        export._LARGEST_FILE = export._LARGE_MODEL = trace._LARGE_WEIGHT = 1000
    if way.scarce:
        keras.src.saving.saving_lib.is_memory_sufficient = lambda model: False
    if way.limit:
        _limit_from(*way.limit)
    code = cli.main(arguments)
    gc.collect()  # as where a process ends by itself: h5py keeps what failed in circles
    sys.exit(code)


def _limit_from(suffix: str, size: int) -> None:
    create = files._create_beside

    def create_and_limit(target: Path, *rest: Any) -> Path:
        if target.suffix == suffix:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return create(target, *rest)

    files._create_beside = create_and_limit  # type: ignore[assignment]


class Folder:
    """The outputs in a folder: what they are, and what of them is new.

    Args:
        path: The folder; a first run fills it.
        sources: The models.
        way: How all runs here differ from ordinary ones.
    """

    def __init__(self, path: Path, sources: Sources, way: Way = Way()):
        path.mkdir(exist_ok=True)
        self.path, self.sources, self.way = path, sources, way
        self.holds = 1
        warm = _WARM.Process(target=int)
        warm.start()
        warm.join()
        self.until_writing, self.duration = self.undisturbed()
        for name in OUTPUTS.values():
            sources.check(self.holds, path / name)

    def undisturbed(self, way: Way | None = None) -> tuple[float, float]:
        """Seconds until a run writes its first file, and until it ends."""
        begin = time.monotonic()
        process = self.start(way)
        wait_until(process, self._appeared(".keras"))
        until_writing = time.monotonic() - begin
        process.join()
        if process.exitcode:
            raise RuntimeError(f"an undisturbed run ended with {process.exitcode}")
        self.holds = 1 - self.holds
        return until_writing, time.monotonic() - begin

    def start(self, way: Way | None = None, said: Path | None = None) -> Any:
        """A run that swaps the other model than the one whose outputs are there."""
        return start(self.sources.paths[1 - self.holds], self.path, way or self.way, said)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file, by name."""
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.path.iterdir()
        }

    def identities(self) -> dict[str, int]:
        """What tells a file from another that took its place, by name of the output."""
        return {name: (self.path / name).stat().st_ino for name in OUTPUTS.values()}

    def forget(self) -> None:
        """Removes weights that the ONNX model there does not need, so that the next are new."""
        graph = onnx.load(self.path / "out.onnx", load_external_data=False).graph
        needed = {entry.value for tensor in graph.initializer for entry in tensor.external_data}
        for file in self.path.glob("weights-*"):
            if file.name not in needed:
                file.unlink()

    def moments(self) -> list[Callable[[], bool]]:
        """What a kill may wait for."""
        before = self.identities()
        return [
            *(
                self._appeared(Path(name).suffix, size)
                for name in OUTPUTS.values()
                for size in (0, 1)
            ),
            *([self._appeared(".data", 1)] if self.way.apart else []),
            lambda: self.identities() != before,
        ]

    def _appeared(self, suffix: str, size: int = 0) -> Callable[[], bool]:
        before = set(os.listdir(self.path))

        def appeared() -> bool:
            with os.scandir(self.path) as found, contextlib.suppress(FileNotFoundError):
                return any(
                    file.name.endswith(suffix)
                    and file.name not in before
                    and file.stat().st_size >= size
                    for file in found
                )
            return False

        return appeared


def wait_until(process: Any, happened: Callable[[], bool]) -> None:
    """Until something happened, or the process ended."""
    while process.exitcode is None and not happened():
        time.sleep(5e-5)


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--full-disk", action="store_true")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        if args.full_disk:
            return 0 if full_disk(folder, console) else 1
        return 0 if kills(folder, args.rounds, args.seed, console) else 1


if __name__ == "__main__":
    sys.exit(main())
