"""Whether what is asked on the command line can be right, before Keras is imported."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kerasnorm.errors import KerasNormError
from kerasnorm.fit.array_file import read_arrays
from kerasnorm.fit.image_folder import check_folder
from kerasnorm.plotting.figure import INSTALL, NOT_INSTALLED
from kerasnorm.targets.names import NAMES

# What each command writes: the argument that names a file, and how that has to end.
OUTPUTS = {
    "swap": {"--output": ".keras", "--onnx": ".onnx", "--report": ".json", "--plot": ".png"},
    "fold": {"output": ".keras", "--onnx": ".onnx", "--report": ".json"},
    "export": {"onnx": ".onnx"},
}


class RequestError(KerasNormError):
    """What was asked on the command line cannot be right."""


def check(arguments: argparse.Namespace) -> None:
    """Raise an error where a request cannot be right; read the data that it names.

    Raises:
        RequestError: If the model does not exist, or an output could not be written in the end.
        DataError: If there is no such data.
    """
    if "model" not in arguments:
        return
    _check_outputs(arguments)
    if "to" in arguments:
        _check_distill(arguments)
        _check_groups(arguments)
        arguments.read_data = None if arguments.data is None else _read(arguments.data)
    if not Path(arguments.model).exists():
        raise RequestError(f"There is no file '{arguments.model}'.")


def _read(data: str) -> Any:
    """Arrays, or the path of a folder: its images are read when the model's input is known."""
    if not Path(data).is_dir():
        return read_arrays(data)
    check_folder(data)
    return Path(data)


def _check_distill(arguments: argparse.Namespace) -> None:
    if not arguments.distill:
        return
    if not NAMES[arguments.to].takes_data:
        raise RequestError(
            f"--distill needs a swap that is not exact already. Received --to {arguments.to}.",
            hint="Leave --distill out.",
        )
    if arguments.data is None:
        raise RequestError(
            "--distill needs data to train on. Received no --data.",
            hint="Give --data X.npy, unlabeled inputs: the more the better.",
        )


def _check_groups(arguments: argparse.Namespace) -> None:
    if arguments.groups is not None and not NAMES[arguments.to].has_groups:
        raise RequestError(
            f"--groups is for --to group. Received --to {arguments.to}.",
            hint="Leave --groups out.",
        )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse, before any work, an output that could not be written in the end."""
    if getattr(arguments, "plot", None) and find_spec("matplotlib") is None:
        raise RequestError(
            f"--plot: {NOT_INSTALLED}",
            hint=INSTALL,
        )
    seen: dict[Path, str] = {}
    for option, suffix in OUTPUTS.get(arguments.command, {}).items():
        path = getattr(arguments, option.strip("-"))
        if path is None:
            continue
        said = option if option.startswith("-") else f"OUT{suffix}"
        if path.suffix != suffix:
            raise RequestError(f"{said} must name a {suffix} file. Received: '{path}'.")
        if not path.parent.is_dir():
            raise RequestError(
                f"The folder of {said} must exist. Received: '{path}'.", hint="Create it first."
            )
        if path.is_dir():
            raise RequestError(f"'{path}' is a folder. {said} must name a file.")
        if path.exists() and not arguments.force:
            raise RequestError(f"'{path}' exists.", hint="Pass --force to replace it.")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise RequestError(f"{other} and {option} both name '{path}'.")
        if path.exists() and Path(arguments.model).exists() and path.samefile(arguments.model):
            raise RequestError(f"{said} must not name the model itself. Received: '{path}'.")
