"""Model files, broken on purpose: mutation number i of a seed is always the same one.

Cut short, bits flipped, blocks moved, the configuration edited, weights of other shapes. `.h5` and
`.hdf5` files, `.keras` files, and pairs in a folder of their own, a configuration as JSON with its
weights in HDF5.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = random.Random

KINDS = ("truncate", "flip", "splice", "config", "weights")
# Where the structure of an HDF5 file begins; elsewhere most bytes are weights.
_STRUCTURE = 8 << 10
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_CLASSES = ("Lambda", "TFOpLambda", "Functional", "Model", "TimeDistributed", "NoSuchLayer")
_NAMES = ("renamed", "a/b", "", "x" * 300, "é: 1")


@dataclass(frozen=True)
class Mutation:
    """What is done to which file, and the command that is then run on the model.

    Args:
        seed: Of all mutations of a run.
        number: Of this one.
        kind: One of `KINDS`.
        folder: Where the unbroken models are.
        files: Those of the model, relative to the folder: one, or a pair.
        target: The one that is broken.
        model: The one that the command gets.
        command: The command without the file and the outputs.
    """

    seed: int
    number: int
    kind: str
    folder: Path
    files: tuple[Path, ...]
    target: Path
    model: Path
    command: tuple[str, ...]

    def write(self, folder: Path) -> str:
        """Copy the model's files into a folder and break one; says what was done to it."""
        for file in self.files:
            shutil.copyfile(self.folder / file, folder / file.name)  # the originals are read-only
        rng = random.Random(f"{self.seed}:{self.number}:write")
        path = folder / self.target.name
        if self.kind == "config":
            return _edit_document(path, lambda document: edit_value(document, rng))
        if self.kind == "weights":
            with _hdf5_file(path) as inner:
                return edit_weights(inner, rng)
        other = self.folder / rng.choice(_files(self.folder))
        return _edit_bytes(path, self.kind, rng, other)


def mutations(folder: Path, seed: int, count: int) -> list[Mutation]:
    """The first so many mutations of the models of a folder."""
    return [mutation(folder, seed, number) for number in range(count)]


def mutation(folder: Path, seed: int, number: int) -> Mutation:
    """One mutation, which depends on nothing but the seed and its number."""
    rng = random.Random(f"{seed}:{number}")
    files = rng.choice(_models(folder))
    kind = rng.choice(KINDS)
    target = rng.choice([file for file in files if kind != "weights" or file.suffix != ".json"])
    if kind == "config":
        target = next((file for file in files if file.suffix == ".json"), target)
    command = rng.choice(
        [("inspect",), ("inspect",), ("swap", "--to", "weight"), ("swap", "--to", "layer")]
    )
    return Mutation(seed, number, kind, folder, files, target, rng.choice(files), command)


def _models(folder: Path) -> list[tuple[Path, ...]]:
    """The models of a folder: its files, and the pairs in folders of their own."""
    models: dict[Path, tuple[Path, ...]] = {}
    for file in _files(folder):
        key = file if file.parent == Path() else file.parent
        models[key] = (*models.get(key, ()), file)
    if not models:
        raise FileNotFoundError(f"There are no models in '{folder}'.")
    return list(models.values())


def _files(folder: Path) -> list[Path]:
    suffixes = (".h5", ".hdf5", ".keras", ".json")
    files = [file for depth in ("*", "*/*") for file in folder.glob(depth)]
    return sorted(file.relative_to(folder) for file in files if file.suffix in suffixes)


def _edit_bytes(path: Path, kind: str, rng: Rng, other: Path) -> str:
    """Break the file itself or, half of the time, what an archive holds.

    Its checksum is right again then, so that whoever reads the member gets to see it.
    """
    if path.suffix == ".keras" and rng.random() < 0.5:
        name = rng.choice((_CONFIG, _WEIGHTS))
        with zipfile.ZipFile(path) as archive:
            data, said = break_bytes(archive.read(name), kind, rng, other)
        _replace_member(path, name, data)
        return f"{said} in {name}"
    data, said = break_bytes(path.read_bytes(), kind, rng, other)
    path.write_bytes(data)
    return said


def break_bytes(data: bytes, kind: str, rng: Rng, other: Path) -> tuple[bytes, str]:
    """Bytes cut short, with bits flipped, or with a block moved; and what was done."""
    if kind == "truncate":
        length = rng.randrange(len(data))
        return data[:length], f"cut to {length} of {len(data)} bytes"
    broken = bytearray(data)
    if kind == "flip":
        within = min(len(data), _STRUCTURE) if rng.random() < 0.5 else len(data)
        count = rng.randint(1, 64)
        for _ in range(count):
            broken[rng.randrange(within)] ^= 1 << rng.randrange(8)
        return bytes(broken), f"{count} bits flipped within {within} bytes"
    length = min(len(data), 1 << rng.randint(0, 16))
    place = rng.randrange(len(data) - length + 1)
    how = rng.choice(("overwrite", "insert", "delete"))
    if how == "delete":
        del broken[place : place + length]
        return bytes(broken), f"{length} bytes deleted at {place}"
    source = rng.choice((data, other.read_bytes()))
    begin = rng.randrange(max(1, len(source) - length))
    block = source[begin : begin + length]
    broken[place : place + (len(block) if how == "overwrite" else 0)] = block
    return bytes(broken), f"{how} {len(block)} bytes at {place}"


def edit_value(document: Any, rng: Rng) -> str:
    """Change one thing in a configuration; says what."""
    places = list(_places(document))
    layers = [(d, k) for d, k in places if k == "name"]
    classes = [(d, k) for d, k in places if k == "class_name"]
    elements = [(d, k) for d, k in places if isinstance(d, list)]
    how = rng.choice(("delete", "replace", "replace", "duplicate", "rename", "class"))
    if how == "rename" and layers:
        taken = [holder[key] for holder, key in layers]
        new = rng.choice(taken if rng.random() < 0.5 else _NAMES)
        return _put(*rng.choice(layers), copy.deepcopy(new))
    if how == "class" and classes:
        here = sorted({str(d[k]) for d, k in classes})
        return _put(*rng.choice(classes), rng.choice(here if rng.random() < 0.7 else _CLASSES))
    if how == "duplicate" and elements:
        elements_of, index = rng.choice(elements)
        elements_of.insert(index, copy.deepcopy(elements_of[index]))
        return f"element {index} duplicated: {_short(elements_of[index])}"
    if how == "delete":
        holder, key = rng.choice([(d, k) for d, k in places if isinstance(d, dict)])
        return f"{key} deleted, which was {_short(holder.pop(key))}"
    holder, key = rng.choice(places)
    another = rng.choice(places)
    values: list[Any] = [None, -1, 0, 1, 1.5, True, "", [], {}, *_NAMES]
    values += [copy.deepcopy(another[0][another[1]])] * 4
    return _put(holder, key, rng.choice(values))


def _put(holder: Any, key: Any, value: Any) -> str:
    before, holder[key] = holder[key], value
    return f"{key}: {_short(before)} replaced by {_short(value)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or dict with each of its keys, at any depth."""
    keys: list[Any] = []
    if isinstance(document, dict):
        keys = list(document)
    elif isinstance(document, list):
        keys = list(range(len(document)))
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _edit_document(path: Path, edit: Callable[[Any], str]) -> str:
    """Edit the configuration in a file, wherever that kind of file has it."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        said = edit(document)
        path.write_text(json.dumps(document))
    elif path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            document = json.loads(archive.read(_CONFIG))
        said = edit(document)
        _replace_member(path, _CONFIG, json.dumps(document).encode())
    else:
        with h5py.File(path, "r+") as file:
            document = json.loads(file.attrs["model_config"])
            said = edit(document)
            file.attrs["model_config"] = json.dumps(document)
    return said


def edit_weights(path: Path, rng: Rng) -> str:
    """Give a weight of an HDF5 file another shape, or exchange two weights; says what."""
    with h5py.File(path, "r+") as file:
        names = _datasets(file, rng)
        name = rng.choice(names)
        value = file[name][()]
        how = rng.choice(("transpose", "reshape", "exchange"))
        if how == "exchange":
            other = rng.choice(names)
            _put_dataset(file, name, file[other][()])
            _put_dataset(file, other, value)
            return f"{name} {value.shape} exchanged with {other} {file[name].shape}"
        if how == "transpose" and value.ndim > 1:
            axes = list(range(value.ndim))
            rng.shuffle(axes)
            changed = value.transpose(axes)
        else:
            shapes = [(value.size,), (1, *value.shape), (*value.shape, 1)]
            changed = value.reshape(rng.choice([s for s in shapes if s != value.shape]))
        _put_dataset(file, name, changed)
        return f"{name} {value.shape} made {changed.shape}"


def _datasets(file: h5py.File, rng: Rng) -> list[str]:
    """The names of the weights; mostly without the optimizer's, which are twice as many."""
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            names.append(name)

    file.visititems(visit)
    return [n for n in names if "optimizer" not in n] if rng.random() < 0.75 else names


def _put_dataset(file: h5py.File, name: str, value: np.ndarray) -> None:
    del file[name]
    file[name] = value


@contextlib.contextmanager
def _hdf5_file(path: Path) -> Iterator[Path]:
    """The weights of a model as a file that may be edited."""
    if path.suffix != ".keras":
        yield path
        return
    inner = path.with_name(_WEIGHTS)
    with zipfile.ZipFile(path) as archive:
        inner.write_bytes(archive.read(_WEIGHTS))
    yield inner
    _replace_member(path, _WEIGHTS, inner.read_bytes())
    inner.unlink()


def _replace_member(path: Path, name: str, data: bytes) -> None:
    """Make an archive anew with another member of that name, in its old place."""
    rebuilt = path.with_suffix(".rebuilt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rebuilt, "w") as new:
        for info in old.infolist():
            new.writestr(info, data if info.filename == name else old.read(info))
    rebuilt.replace(path)
