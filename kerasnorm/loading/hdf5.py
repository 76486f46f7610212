"""What an HDF5 file holds, read with the suspicion that a file from strangers deserves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from kerasnorm.errors import LoadError
from kerasnorm.loading.safety import Limits

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does, whatever its name."""
    with open(path, "rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


class Hdf5:
    """An HDF5 file that was looked through: no links out of it, nothing beyond a limit.

    Args:
        source: The file, by path or open.
        name: What to call it in errors.
        limits: How much it may ask for.

    Raises:
        LoadError: If it is damaged, links to other files, or is beyond a limit.
    """

    def __init__(self, source: Path | BinaryIO, name: str, limits: Limits):
        self.name, self._limits = name, limits
        try:
            self._file = h5py.File(source, "r")
        except OSError as error:
            raise LoadError(
                f"'{name}' is damaged: it is not a whole HDF5 file.",
                hint="Copy or download it again.",
            ) from error
        try:
            self.nbytes = self._look_through(_size(source))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, path: str) -> bool:
        return path in self._file

    def group(self, path: str) -> h5py.Group:
        """The group of that path.

        Raises:
            LoadError: If there is none.
        """
        group = self._file.get(path)
        if not isinstance(group, h5py.Group):
            raise LoadError(f"'{self.name}' is damaged: it has no group '{path}'.")
        return group

    def text(self, attribute: str, path: str = "/") -> str | None:
        """An attribute as text, None where there is none."""
        value = self.group(path).attrs.get(attribute)
        if isinstance(value, h5py.Empty) or value is None:
            return None
        return self._decoded(value)

    def names(self, attribute: str, path: str) -> list[str] | None:
        """An attribute that is a list of names, however many pieces it is stored in; or None."""
        attributes = self.group(path).attrs
        if attribute in attributes:
            pieces = [attributes[attribute]]
        else:
            # HDF5 allows 64 kB for one attribute; Keras numbers the pieces of a longer list.
            pieces = []
            while f"{attribute}{len(pieces)}" in attributes:
                pieces.append(attributes[f"{attribute}{len(pieces)}"])
            if not pieces:
                return None
        return [self._decoded(name) for piece in pieces for name in np.asarray(piece).ravel()]

    def json(self, attribute: str) -> Any:
        """An attribute as JSON; None where there is none.

        Raises:
            LoadError: If it is no JSON.
        """
        text = self.text(attribute)
        return None if text is None else parse_json(text, f"'{self.name}' ({attribute})")

    def array(self, path: str) -> np.ndarray:
        """The numbers stored under a path.

        Raises:
            LoadError: If there are none.
        """
        dataset = self._file.get(path)
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
            raise LoadError(f"'{self.name}' is damaged: it has no numbers at '{path}'.")
        try:
            return dataset[()]
        except (OSError, RuntimeError) as error:
            raise LoadError(
                f"'{self.name}' is damaged: '{path}' cannot be read.",
                hint="Copy or download it again.",
            ) from error

    def _look_through(self, file_size: int) -> int:
        """How many bytes its arrays have."""
        total = 0
        for path, item in self._items(self._file, "", set(), 0):
            if not isinstance(item, h5py.Dataset):
                continue
            if item.external or item.is_virtual:
                raise LoadError(f"'{self.name}' is refused: '{path}' is kept in another file.")
            total += item.size * item.dtype.itemsize if item.shape is not None else 0
            if total > self._limits.content(file_size):
                raise LoadError(
                    f"'{self.name}' is refused: it has {file_size:,} bytes and claims to hold "
                    f"more than {total:,}."
                )
        return total

    def _items(
        self, group: h5py.Group, path: str, seen: set[Any], depth: int
    ) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
        for name in group:
            inner = f"{path}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise LoadError(f"'{self.name}' is refused: '{inner}' is a link.")
            item = group[name]
            yield inner, item
            if not isinstance(item, h5py.Group):
                continue
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or depth > self._limits.groups:
                raise LoadError(f"'{self.name}' is refused: a group is in it twice, or in itself.")
            seen.add(address)
            yield from self._items(item, inner, seen, depth + 1)

    def _decoded(self, value: Any) -> str:
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        text = str(value)
        if len(text) > self._limits.characters:
            raise LoadError(f"A text of {len(text):,} characters in the file is refused.")
        return text


def parse_json(text: str, where: str) -> Any:
    """JSON, or a `LoadError` that says where it is broken."""
    try:
        return json.loads(text, object_hook=_plain)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{where} is damaged: its configuration is not JSON ({error}).") from error


def _plain(item: dict[str, Any]) -> Any:
    """Tuples, shapes and arrays, which Keras 2 marked, as the lists and numbers that they are."""
    if item.get("class_name") in ("__tuple__", "TensorShape") and "items" in item:
        return item["items"]
    if item.get("type") == "ndarray" and item.keys() == {"type", "value"}:
        return item["value"]
    return item


def _size(source: Path | BinaryIO) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return size
