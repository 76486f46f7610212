"""Runs of `kerasnorm swap` that may be ended at any time, and what they leave, for two tools.

Two models of 7 MB with different weights are swapped in turn to the same three outputs. Most runs
are of the command's function in a process that has imported everything before. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import resource
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import forked
import keras
import numpy as np
import onnx
import onnxruntime
from keras import layers

import kerasnorm
from kerasnorm import atomic_files
from kerasnorm.cli import main
from kerasnorm.onnx import export, frozen_graph

OUTPUTS = {"--output": "out.keras", "--report": "out.json", "--onnx": "out.onnx"}
_INPUT = (16, 16, 3)
_FILTERS = (32, 32, 64, 64, 128, 128, 128, 128)
_SITES = len(_FILTERS) + 1


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
    said = said or Path(os.devnull)
    return forked.start(_run, arguments, way, temporary=folder.parent, stdout=said, stderr=said)


def _run(arguments: list[str], way: Way) -> int:
    if way.command:
        os.execv(sys.executable, [sys.executable, "-m", "kerasnorm", *arguments])
    if way.apart:
        export._LARGEST_FILE = export._LARGE_MODEL = frozen_graph._LARGE_WEIGHT = 1000
    if way.scarce:
        keras.src.saving.saving_lib.is_memory_sufficient = lambda model: False
    if way.limit:
        _limit_from(*way.limit)
    code = main.main(arguments)
    gc.collect()  # as where a process ends by itself: h5py keeps what failed in circles
    return code


def _limit_from(suffix: str, size: int) -> None:
    create = atomic_files._create_beside

    def create_and_limit(target: Path, *rest: Any) -> Path:
        if target.suffix == suffix:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return create(target, *rest)

    atomic_files._create_beside = create_and_limit  # type: ignore[assignment]


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
        forked.import_everything()  # which is not to be timed
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
