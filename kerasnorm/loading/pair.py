"""A configuration in JSON and a file of weights beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasnorm.errors import LoadError
from kerasnorm.loading.hdf5 import Hdf5, is_hdf5, parsed
from kerasnorm.loading.stored import as_stored_config

_LONGEST_TEXT = 2**27
_HINT = "Name the file of the configuration, with the weights beside it under the same name."


@dataclass(frozen=True)
class Pair:
    """The two files of a model."""

    config: Path
    weights: Path


def find_pair(file: Path) -> Pair | None:
    """The pair that a folder, a configuration or a file of weights belongs to; None for others.

    Raises:
        LoadError: If one of the two is missing, or several could be meant.
    """
    if file.is_dir():
        return _in_folder(file)
    if file.suffix.lower() == ".json":
        if read_config(file) is None:
            raise LoadError(f"'{file}' holds no configuration of a Keras model.")
        return Pair(file, _only(file, _weights_in(file.parent), "weights"))
    if is_hdf5(file) and _is_weights_only(file):
        return Pair(_only(file, _configs_in(file.parent), "a configuration"), file)
    return None


def read_config(file: Path) -> dict[str, Any] | None:
    """The model configuration in a JSON file, None where it is something else."""
    if file.stat().st_size > _LONGEST_TEXT:
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"'{file}' is damaged: it is no text.") from error
    return as_stored_config(parsed(text, f"'{file}'"))


def _in_folder(folder: Path) -> Pair | None:
    configs, weights = _configs_in(folder), _weights_in(folder)
    if len(configs) == 1 and len(weights) == 1:
        return Pair(configs[0], weights[0])
    return None


def _configs_in(folder: Path) -> list[Path]:
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            if read_config(file) is not None:
                found.append(file)
        except (LoadError, OSError):
            continue
    return found


def _weights_in(folder: Path) -> list[Path]:
    found = []
    for file in sorted(folder.iterdir()):
        try:
            if file.is_file() and is_hdf5(file) and _is_weights_only(file):
                found.append(file)
        except (LoadError, OSError):
            continue
    return found


def _is_weights_only(file: Path) -> bool:
    with Hdf5(file, str(file)) as content:
        return content.text("model_config") is None


def _only(file: Path, found: list[Path], what: str) -> Path:
    """The one that is meant: of the same name, or the only one there is."""
    named = [other for other in found if other.name.split(".")[0] == file.name.split(".")[0]]
    for candidates in (named, found):
        if len(candidates) == 1:
            return candidates[0]
    missing = f"there are {len(found)} beside it" if found else "there is none beside it"
    mine = "weights" if what == "a configuration" else "a configuration"
    raise LoadError(f"'{file}' holds {mine} only, and needs {what}: {missing}.", hint=_HINT)
