"""What each command does. Each returns its exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras

import kerasnorm
from kerasnorm.atomic_files import replace_together, replace_whole
from kerasnorm.cli import output
from kerasnorm.errors import ExportError, KerasNormError, SwapError
from kerasnorm.fit.data import read_arrays
from kerasnorm.plotting.figure import INSTALL, NOT_INSTALLED
from kerasnorm.targets import TARGETS

DONE = 0


class RequestError(KerasNormError):
    """What was asked on the command line cannot be right."""


def demo(arguments: argparse.Namespace) -> int:
    """Train, swap, fold and export a small model."""
    from kerasnorm.cli import demo as story

    story.run(output.console(arguments))
    return DONE


def inspect(arguments: argparse.Namespace) -> int:
    """Say what a swap would do."""
    model = _load(arguments)
    report = kerasnorm.inspect_norms(model)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        report.show(output.console(arguments))
    return DONE


def swap(arguments: argparse.Namespace) -> int:
    """Swap a model and write what was asked for."""
    outputs = {"--output": ".keras", "--onnx": ".onnx", "--report": ".json", "--plot": ".png"}
    _check_outputs(arguments, outputs)
    _check_distill(arguments)
    data = None if arguments.data is None else read_arrays(arguments.data)
    model = _load(arguments)
    console = output.console(arguments)
    swap = kerasnorm.swap_norms(
        model,
        arguments.to,
        data,
        damping=arguments.damping,
        strict=arguments.strict,
        seed=arguments.seed,
    )
    if arguments.distill:
        history = kerasnorm.distill(swap.model, model, data, seed=arguments.seed)
        swap.update_report(data)
        swap.report.notes.append(_distilled(history))
        swap = dataclasses.replace(swap, differences=_differences(swap))
    swap.report.show(console)
    output.show_fidelity(console, swap)
    exported = None
    with replace_together() as replace:
        if arguments.output:
            with replace(arguments.output) as temporary:
                swap.model.save(temporary)
        if arguments.report:
            with replace(arguments.report) as temporary:
                facts = {**_facts(arguments, swap), **swap.report.to_dict()}
                temporary.write_text(json.dumps(facts, indent=2) + "\n")
        if arguments.plot:
            with replace(arguments.plot) as temporary:
                swap.report.plot(temporary)
        if arguments.onnx:  # last, for it may leave a second file, of weights
            with replace(arguments.onnx) as temporary:
                exported = kerasnorm.export_onnx(
                    swap, temporary, opset=arguments.opset, inputs=_some(data)
                )
    if exported is not None:
        output.show_export(console, exported)
    output.show_written(console, arguments, outputs)
    if not any(getattr(arguments, option.strip("-")) for option in outputs):
        console.print("nothing written: give --output, --onnx, --report or --plot")
    if swap.report.sites:
        output.show_headline(console, Path(arguments.model).name, swap, exported)
    return DONE


def _facts(arguments: argparse.Namespace, swap: Any) -> dict[str, Any]:
    """What a report in a file says of the run beside what `Report.to_dict` does."""
    return {
        "kerasnorm": kerasnorm.__version__,
        "source": Path(arguments.model).name,
        "data": None if arguments.data is None else Path(arguments.data).name,
        "seed": arguments.seed,
        "differences": {name: float(value) for name, value in swap.differences.items()},
    }


def _some(data: Any) -> Any:
    """A few of the samples, to check an export on what the model is for."""
    return None if data is None else keras.tree.map_structure(lambda array: array[:8], data)


def _check_distill(arguments: argparse.Namespace) -> None:
    if not arguments.distill:
        return
    if not TARGETS[arguments.to].takes_data:
        raise RequestError(
            f"--distill needs a swap that is not exact already. Received --to {arguments.to}.",
            hint="Leave --distill out.",
        )
    if arguments.data is None:
        raise RequestError(
            "--distill needs data to train on. Received no --data.",
            hint="Give --data X.npy, unlabeled inputs: the more the better.",
        )


def _differences(swap: Any) -> dict[str, float]:
    """How far the models are apart now; empty where they cannot be run on random inputs."""
    try:
        return swap.compare()
    except SwapError:
        return {}


def _distilled(history: Any) -> str:
    """What distillation did on held-out samples."""
    before, after = history.before, history.after
    shares = [
        f"{name} {before[name]:.2%} → {after[name]:.2%}"
        for name in before
        if name.endswith("agreement")
    ]
    loss = f"loss {before['loss']:.3g} → {after['loss']:.3g}"
    return f"distilled; on held-out samples: {', '.join([*shares, loss])}"


def fold(arguments: argparse.Namespace) -> int:
    """Write a model in plain Keras layers."""
    _check_outputs(arguments, {"output": ".keras"})
    model = _load(arguments)
    console = output.console(arguments)
    output.show_warnings(console, model.load_report.warnings)
    folded = kerasnorm.fold_norms(model)
    with replace_whole(arguments.output) as temporary:
        folded.save(temporary)
    output.show_written(console, arguments, {"output": ".keras"})
    return DONE


def export(arguments: argparse.Namespace) -> int:
    """Write a model as ONNX."""
    _check_outputs(arguments, {"onnx": ".onnx"})
    model = _load(arguments)
    console = output.console(arguments)
    output.show_warnings(console, model.load_report.warnings)
    output.show_export(console, kerasnorm.export_onnx(model, arguments.onnx, opset=arguments.opset))
    output.show_written(console, arguments, {"onnx": ".onnx"})
    return DONE


def _load(arguments: argparse.Namespace):
    from kerasnorm.loading.load import load

    return load(arguments.model, allow_custom_code=arguments.allow_custom_code)


def _check_outputs(arguments: argparse.Namespace, outputs: dict[str, str]) -> None:
    """Refuse, before any work, an output that could not be written in the end."""
    if getattr(arguments, "onnx", None):
        _check_opset(arguments.opset)
    if getattr(arguments, "plot", None) and find_spec("matplotlib") is None:
        raise RequestError(
            f"--plot: {NOT_INSTALLED}",
            hint=INSTALL,
        )
    seen: dict[Path, str] = {}
    for option, suffix in outputs.items():
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


def _check_opset(opset: int) -> None:
    from kerasnorm.onnx.export import check_opset

    try:
        check_opset(opset)
    except ExportError as error:
        raise RequestError(str(error)) from error
