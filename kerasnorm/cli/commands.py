"""What each command does, once its request was checked. Each returns its exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import keras

from kerasnorm.atomic_files import replace_together
from kerasnorm.cli import output
from kerasnorm.cli.checked_save import save_checked
from kerasnorm.cli.requests import OUTPUTS, RequestError
from kerasnorm.distillation.distill import distill
from kerasnorm.errors import ExportError, SwapError
from kerasnorm.fit.image_folder import ImageFolder
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.named_inputs import in_order_of_inputs
from kerasnorm.loading.load import load
from kerasnorm.onnx.export import check_opset, export_onnx
from kerasnorm.swap.fold import fold as fold_model
from kerasnorm.swap.swap import inspect_norms, swap_norms
from kerasnorm.version import __version__

DONE = 0


def demo(arguments: argparse.Namespace) -> int:
    """Train, swap, fold and export a small model."""
    from kerasnorm.cli import demo as story

    story.run(output.console(arguments))
    return DONE


def inspect(arguments: argparse.Namespace) -> int:
    """Say what a swap would do."""
    model = _load(arguments)
    report = inspect_norms(model)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        report.show(output.console(arguments))
    return DONE


def swap(arguments: argparse.Namespace) -> int:
    """Swap a model and write what was asked for."""
    if arguments.onnx:
        _check_opset(arguments.opset)
    model = _load(arguments)
    data = _data(arguments, model)
    limits = _limits(arguments)
    console = output.console(arguments)
    swap = swap_norms(
        model,
        arguments.to,
        data,
        damping=arguments.damping,
        groups=arguments.groups,
        strict=arguments.strict,
        allow_unlike_data=arguments.allow_unlike_data,
        seed=arguments.seed,
        time_budget=arguments.time_budget,
        **limits,
    )
    if isinstance(data, ImageFolder):
        swap.report.notes.append(data.note)
    if arguments.distill:
        history = distill(swap.model, model, data, seed=arguments.seed, **limits)
        swap.update_report(data, seed=arguments.seed, **limits)
        swap.report.notes.append(_distilled(history))
        swap = dataclasses.replace(swap, differences=_differences(swap))
    swap.report.show(console)
    output.show_fidelity(console, swap)
    _check_strict(arguments, swap.report)
    exported = None
    with replace_together() as replace:
        if arguments.output:
            with replace(arguments.output) as temporary:
                _save(swap.model, temporary, arguments)
        if arguments.report:
            with replace(arguments.report) as temporary:
                facts = {**_facts(arguments, swap), **swap.report.to_dict()}
                temporary.write_text(json.dumps(facts, indent=2) + "\n")
        if arguments.plot:
            with replace(arguments.plot) as temporary:
                swap.report.plot(temporary)
        if arguments.onnx:  # last, for it may leave a second file, of weights
            with replace(arguments.onnx) as temporary:
                exported = export_onnx(swap, temporary, opset=arguments.opset, inputs=_some(data))
    if exported is not None:
        output.show_export(console, exported)
    output.show_written(console, arguments, OUTPUTS["swap"])
    if not any(getattr(arguments, option.strip("-")) for option in OUTPUTS["swap"]):
        console.print("nothing written: give --output, --onnx, --report or --plot")
    if swap.report.sites:
        output.show_headline(console, Path(arguments.model).name, swap, exported)
    return DONE


def _check_strict(arguments: argparse.Namespace, report: Any) -> None:
    if arguments.strict and report.warnings:
        raise SwapError(
            f"--strict allows no warning. Received {len(report.warnings)}: {report.warnings[0]}.",
            model=report.model,
            hint="See to it, or leave --strict out.",
        )


def _data(arguments: argparse.Namespace, model: keras.Model) -> Any:
    """The data that was read, for this model's inputs."""
    data = arguments.read_data
    if isinstance(data, Path):
        return ImageFolder(data, graphs_of(model).root, arguments.seed)
    return in_order_of_inputs(data, graphs_of(model).root) if isinstance(data, dict) else data


def _facts(arguments: argparse.Namespace, swap: Any) -> dict[str, Any]:
    """What a report in a file says of the run beside what `Report.to_dict` does."""
    return {
        "kerasnorm": __version__,
        "source": Path(arguments.model).name,
        "data": None if arguments.data is None else Path(arguments.data).name,
        "seed": arguments.seed,
        "differences": _numbers(swap.differences),
    }


def _numbers(differences: dict[str, float]) -> dict[str, float]:
    """Differences in a type that JSON knows."""
    return {name: float(value) for name, value in differences.items()}


def _limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """How many samples are used; where that is not said, what each function does by itself."""
    if arguments.max_samples is None:
        return {}
    return {"max_samples": None if arguments.max_samples == "all" else arguments.max_samples}


def _some(data: Any) -> Any:
    """A few of the samples, to check an export on what the model is for."""
    if isinstance(data, ImageFolder):
        return keras.ops.convert_to_numpy(next(iter(data))[:8])
    return None if data is None else keras.tree.map_structure(lambda array: array[:8], data)


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
    if arguments.onnx:
        _check_opset(arguments.opset)
    model = _load(arguments)
    console = output.console(arguments)
    output.show_warnings(console, model.load_report.warnings)
    folded = fold_model(model)
    folded.report.repairs = list(model.load_report.repairs)
    if folded.report.sites:
        folded.report.show(console)
    output.show_differences(console, folded.differences)
    exported = None
    with replace_together() as replace:
        with replace(arguments.output) as temporary:
            _save(folded.model, temporary, arguments)
        if arguments.report:
            with replace(arguments.report) as temporary:
                facts = {
                    "kerasnorm": __version__,
                    "source": Path(arguments.model).name,
                    "differences": _numbers(folded.differences),
                }
                text = json.dumps({**facts, **folded.report.to_dict()}, indent=2)
                temporary.write_text(text + "\n")
        if arguments.onnx:  # last, for it may leave a second file, of weights
            with replace(arguments.onnx) as temporary:
                exported = export_onnx(folded.model, temporary, opset=arguments.opset)
    if exported is not None:
        output.show_export(console, exported)
    output.show_written(console, arguments, OUTPUTS["fold"])
    return DONE


def export(arguments: argparse.Namespace) -> int:
    """Write a model as ONNX."""
    _check_opset(arguments.opset)
    model = _load(arguments)
    console = output.console(arguments)
    output.show_warnings(console, model.load_report.warnings)
    output.show_export(console, export_onnx(model, arguments.onnx, opset=arguments.opset))
    output.show_written(console, arguments, OUTPUTS["export"])
    return DONE


def _load(arguments: argparse.Namespace):
    return load(arguments.model, allow_custom_code=arguments.allow_custom_code)


def _save(model: keras.Model, path: Path, arguments: argparse.Namespace) -> None:
    save_checked(model, path, allow_custom_code=arguments.allow_custom_code)


def _check_opset(opset: int) -> None:
    try:
        check_opset(opset)
    except ExportError as error:
        raise RequestError(str(error)) from error
