"""A configuration in JSON and a file of weights beside it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasnorm.errors import LoadError
from kerasnorm.loading.hdf5 import Hdf5, is_hdf5, parse_json
from kerasnorm.loading.model_file import as_stored_config
from kerasnorm.loading.safety import Limits

_HINT = "Put both into one folder under the same name."
_NAMED = 4
# As in `model_X.json`, `X_arch.json`, `X_weights.h5`, `weights_X.h5`, `X.weights.h5`.
_ROLES = frozenset(
    {
        "arch",
        "architecture",
        "config",
        "configuration",
        "json",
        "model",
        "structure",
        "topology",
        "weight",
        "weights",
    }
)


@dataclass(frozen=True)
class FilePair:
    """The two files of a model, and what the first says."""

    config: Path
    weights: Path
    stored: dict[str, Any]


def find_file_pair(file: Path, limits: Limits) -> FilePair | None:
    """The pair that a folder, a configuration or a file of weights belongs to; None for others.

    Raises:
        LoadError: If one of the two is missing, or several could be meant.
    """
    is_config = functools.partial(_is_config, limits=limits)
    is_weights = functools.partial(_is_weights, limits=limits)
    if file.is_dir():
        configs = _readable(sorted(file.glob("*.json")), is_config)
        weights = _readable(sorted(file.iterdir()), is_weights)
        if len(configs) != 1 or len(weights) != 1:
            return None
        return _file_pair(configs[0], weights[0], limits)
    if file.suffix.lower() == ".json":
        if not is_config(file):
            raise LoadError(f"'{file}' holds no configuration of a Keras model.")
        return _file_pair(file, _beside(file, "*", is_weights, "weights"), limits)
    if is_hdf5(file) and is_weights(file):
        return _file_pair(_beside(file, "*.json", is_config, "a configuration"), file, limits)
    return None


def _file_pair(config: Path, weights: Path, limits: Limits) -> FilePair:
    stored = _read_config(config, limits)
    if stored is None:
        raise LoadError(f"'{config}' changed while it was read.")
    return FilePair(config, weights, stored)


def _beside(file: Path, pattern: str, wanted: Callable[[Path], bool], what: str) -> Path:
    """The file beside it that is meant: of the same name, of its first part, or the only one."""
    others = sorted(other for other in file.parent.glob(pattern) if other != file)
    first = file.name.split(".")[0]
    found: list[Path] = []
    for alike in (
        [other for other in others if other.stem == file.stem],
        [other for other in others if other.name.split(".")[0] == first],
        [other for other in others if _own_words(other) == _own_words(file)],
        others,
    ):
        found = _readable(alike, wanted)
        if len(found) == 1:
            return found[0]
    named = ", ".join(f"'{other.name}'" for other in found[:_NAMED])
    more = ", …" if len(found) > _NAMED else ""
    missing = f"there are {len(found)} beside it: {named}{more}" if found else "there is none"
    mine = "weights" if what == "a configuration" else "a configuration"
    raise LoadError(f"'{file}' holds {mine} only, and needs {what}: {missing}.", hint=_HINT)


def _own_words(file: Path) -> list[str]:
    """The words of a file's name without those at its ends that say which of the two it is."""
    words = re.split(r"[._-]", file.stem)
    for end in (0, -1):
        while words and words[end].lower() in _ROLES:
            words.pop(end)
    return words


def _readable(files: list[Path], wanted: Callable[[Path], bool]) -> list[Path]:
    """Those that are wanted; what cannot be read is not."""
    found = []
    for file in files:
        try:
            if file.is_file() and wanted(file):
                found.append(file)
        except (LoadError, OSError):
            continue
    return found


def _is_config(file: Path, limits: Limits) -> bool:
    return _read_config(file, limits) is not None


def _read_config(file: Path, limits: Limits) -> dict[str, Any] | None:
    """The model configuration in a JSON file, None where it is something else."""
    if file.stat().st_size > limits.characters:
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"'{file}' is damaged: it is no text.") from error
    config = parse_json(text, f"'{file}'")
    if isinstance(config, str):  # what `to_json` gave was written as JSON once more
        config = parse_json(config, f"'{file}'")
    return as_stored_config(config)


def _is_weights(file: Path, limits: Limits) -> bool:
    if not is_hdf5(file):
        return False
    with Hdf5(file, str(file), limits) as content:
        return content.text("model_config") is None
