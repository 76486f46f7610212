"""The `.keras` archive: a zip file with a configuration, metadata and an HDF5 file of weights."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from kerasnorm.errors import LoadError
from kerasnorm.loading.hdf5 import Hdf5, parse_json
from kerasnorm.loading.safety import Limits

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ASSETS = "assets/"


class Archive:
    """A `.keras` file that was looked through: nothing in it but what Keras puts there.

    Args:
        file: The path.
        limits: How much it may ask for.

    Raises:
        LoadError: If it is damaged, has paths out of its folder, or is beyond a limit.
    """

    def __init__(self, file: Path, limits: Limits):
        self.file, self._limits = file, limits
        try:
            with zipfile.ZipFile(file) as archive:
                self._check_entries(archive)
                self.config: dict[str, Any] = self._json(archive, _CONFIG)
                names = archive.namelist()
                metadata = self._json(archive, _METADATA) if _METADATA in names else {}
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(self.config, dict) or "class_name" not in self.config:
            raise self._damaged("its configuration describes no model")
        self.keras_version = str(metadata.get("keras_version", "3"))

    @contextmanager
    def weights(self) -> Iterator[Hdf5]:
        """The file of weights.

        Raises:
            LoadError: If it is damaged.
        """
        try:
            with zipfile.ZipFile(self.file) as archive:
                content = io.BytesIO(archive.read(_WEIGHTS))  # checks its sum
        except Exception as error:  # zlib has errors of its own
            raise self._damaged(str(error)) from error
        with Hdf5(content, f"{self.file} ({_WEIGHTS})", self._limits) as weights:
            yield weights

    def _check_entries(self, archive: zipfile.ZipFile) -> None:
        packed, names = self.file.stat().st_size, archive.namelist()
        if _CONFIG not in names or _WEIGHTS not in names:
            raise LoadError(
                f"'{self.file}' is not a whole Keras file: it has no {_CONFIG} or {_WEIGHTS}.",
                hint="Save the model anew with `model.save('model.keras')`.",
            )
        for name in names:
            climbs = name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts
            if climbs or "\\" in name or ":" in name:
                raise LoadError(f"'{self.file}' is refused: it has a path out of it, '{name}'.")
            if name not in (_CONFIG, _METADATA, _WEIGHTS) and not name.startswith(_ASSETS):
                raise LoadError(f"'{self.file}' is refused: Keras has no file '{name}' in it.")
        if len(set(names)) < len(names):
            raise LoadError(f"'{self.file}' is refused: a file is in it twice.")
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > self._limits.content(packed):
            raise LoadError(
                f"'{self.file}' is refused: its {packed:,} bytes unpack to {unpacked:,}."
            )

    def _json(self, archive: zipfile.ZipFile, name: str) -> Any:
        if archive.getinfo(name).file_size > self._limits.characters:
            raise LoadError(f"'{self.file}' is refused: its {name} is too long.")
        try:
            text = archive.read(name).decode("utf-8")
        except Exception as error:  # zlib has errors of its own
            raise self._damaged(str(error)) from error
        return parse_json(text, f"'{self.file}' ({name})")

    def _damaged(self, why: str) -> LoadError:
        return LoadError(
            f"'{self.file}' is damaged: it is not a whole Keras file ({why.rstrip('.')}).",
            hint="Copy or download it again.",
        )
