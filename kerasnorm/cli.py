"""The command line: `kerasnorm demo | inspect | swap | fold | export`.

Exit codes: 0 done; 1 the work failed (parity broken; something refused, or no BatchNorm found,
under --strict); 2 the request was wrong. Errors are one or two plain lines on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kerasnorm
from kerasnorm.calibrate.batches import read_arrays
from kerasnorm.errors import DataError, ExportError, KerasNormError, LoadError
from kerasnorm.files import replace_together, replace_whole

DONE, FAILED, WRONG_REQUEST = 0, 1, 2

_EXAMPLES = """\
examples:
  kerasnorm demo
  kerasnorm inspect model.h5
  kerasnorm swap model.h5 --to weight --output swapped.keras --onnx swapped.onnx
  kerasnorm swap model.h5 --to layer --data images.npy --output swapped.keras
  kerasnorm swap model.h5 --to cosine --data images.npy --distill --output swapped.keras
  kerasnorm fold swapped.keras plain.keras
  kerasnorm export plain.keras plain.onnx
"""


class RequestError(KerasNormError):
    """What was asked on the command line cannot be right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments, without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code: 0 done, 1 the work failed, 2 the request was wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an old code page has no arrows and Greek
            stream.reconfigure(errors="replace")
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else WRONG_REQUEST
    problem: Exception
    try:
        with (
            contextlib.nullcontext() if arguments.debug else _silent_libraries(),
            _without_bars() if arguments.quiet else contextlib.nullcontext(),
        ):
            return arguments.run(arguments)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was written.", 130)
    except (RequestError, LoadError, DataError) as error:
        code, problem = WRONG_REQUEST, error
    except Exception as error:
        # ours, or whatever Keras, TensorFlow or the disk had to say: never a traceback
        code, problem = FAILED, error
    if arguments.debug:
        raise problem
    return _complain(_one_line(problem), code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kerasnorm",
        description="Take BatchNorm out of a trained Keras model, keep what it knows, ship it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=kerasnorm.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
        sub.add_argument("--quiet", action="store_true", help="print errors only")
        sub.add_argument(
            "--allow-custom-code",
            action="store_true",
            help="run functions stored in the model file; only for files you trust",
        )
        return sub

    command("demo", _demo, "the whole story on real data, nothing to download")

    inspect = command("inspect", _inspect, "say what a swap would do to each BatchNorm")
    inspect.add_argument("model", metavar="MODEL", help=".keras, .h5 or .hdf5 file")
    inspect.add_argument("--json", action="store_true", help="print JSON and nothing else")

    swap = command("swap", _swap, "replace a model's BatchNorm by another normalization")
    swap.add_argument("model", metavar="MODEL", help=".keras, .h5 or .hdf5 file")
    swap.add_argument(
        "--to",
        required=True,
        choices=["weight", "layer", "cosine"],
        help="the normalization to use",
    )
    swap.add_argument(
        "--data",
        metavar="X.npy|X.npz[:KEY]",
        help="unlabeled inputs to fit to: needed for cosine, better for layer",
    )
    swap.add_argument(
        "--distill",
        action="store_true",
        help="then train it on the same data to answer as the source does",
    )
    swap.add_argument(
        "--damping",
        type=float,
        default=0.0,
        metavar="A",
        help="0 is pure; as it grows, layer and cosine norm tend to the affine map (0)",
    )
    swap.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (0)")
    swap.add_argument("--output", type=Path, metavar="OUT.keras", help="write the swapped model")
    swap.add_argument("--onnx", type=Path, metavar="OUT.onnx", help="write it as ONNX, checked")
    swap.add_argument("--report", type=Path, metavar="OUT.json", help="write the report as JSON")
    swap.add_argument("--strict", action="store_true", help="fail if any site is refused")
    _add_opset(swap)
    _add_force(swap)

    fold = command("fold", _fold, "write a model with plain Keras layers only")
    fold.add_argument("model", metavar="MODEL", help=".keras, .h5 or .hdf5 file")
    fold.add_argument("output", type=Path, metavar="OUT.keras")
    _add_force(fold)

    export = command("export", _export, "write a model as ONNX and check it in ONNX Runtime")
    export.add_argument("model", metavar="MODEL", help=".keras, .h5 or .hdf5 file")
    export.add_argument("onnx", type=Path, metavar="OUT.onnx")
    _add_opset(export)
    _add_force(export)
    return parser


def _add_opset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opset", type=int, default=17, metavar="N", help="ONNX opset (17)")


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")


def _demo(arguments: argparse.Namespace) -> int:
    from kerasnorm import demo

    demo.run(_console(arguments))
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    report = kerasnorm.inspect_norms(loaded.model)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _show(_console(arguments), report)
    return DONE


def _swap(arguments: argparse.Namespace) -> int:
    outputs = {"--output": ".keras", "--onnx": ".onnx", "--report": ".json"}
    _check_outputs(arguments, outputs)
    _check_distill(arguments)
    data = None if arguments.data is None else read_arrays(arguments.data)
    loaded = _load(arguments)
    console = _console(arguments)
    swap = kerasnorm.swap_norms(
        loaded.model,
        arguments.to,
        data,
        damping=arguments.damping,
        strict=arguments.strict,
        seed=arguments.seed,
    )
    if arguments.distill:
        history = kerasnorm.distill(swap.model, loaded.model, data, seed=arguments.seed)
        swap.update_report(data)
        swap.report.notes.append(_said_of(history))
    _show(console, swap.report)
    _show_fidelity(console, swap)
    with replace_together() as replace:
        if arguments.output:
            with replace(arguments.output) as temporary:
                swap.model.save(temporary)
        if arguments.report:
            with replace(arguments.report) as temporary:
                temporary.write_text(json.dumps(swap.report.to_dict(), indent=2) + "\n")
        if arguments.onnx:  # last, for it may leave a second file, of weights
            with replace(arguments.onnx) as temporary:
                export = kerasnorm.export_onnx(swap.model, temporary, opset=arguments.opset)
    if arguments.onnx:
        _show_export(console, export)
    _show_written(console, arguments, outputs)
    return DONE


def _check_distill(arguments: argparse.Namespace) -> None:
    if not arguments.distill:
        return
    if arguments.to == "weight":
        raise RequestError(
            "--distill needs a swap that is not exact already. Received --to weight.",
            hint="Leave --distill out.",
        )
    if arguments.data is None:
        raise RequestError(
            "--distill needs data to train on. Received no --data.",
            hint="Give --data X.npy, unlabeled inputs: the more the better.",
        )


def _said_of(history: Any) -> str:
    """What distillation did on held-out samples."""
    before, after = history.before, history.after
    shares = [
        f"{name} {before[name]:.2%} → {after[name]:.2%}"
        for name in before
        if name.endswith("agreement")
    ]
    loss = f"loss {before['loss']:.3g} → {after['loss']:.3g}"
    return f"distilled; on held-out samples: {', '.join([*shares, loss])}"


def _fold(arguments: argparse.Namespace) -> int:
    _check_outputs(arguments, {"output": ".keras"})
    loaded = _load(arguments)
    folded = kerasnorm.fold_norms(loaded.model)
    with replace_whole(arguments.output) as temporary:
        folded.save(temporary)
    _show_written(_console(arguments), arguments, {"output": ".keras"})
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    _check_outputs(arguments, {"onnx": ".onnx"})
    loaded = _load(arguments)
    console = _console(arguments)
    _show_export(
        console, kerasnorm.export_onnx(loaded.model, arguments.onnx, opset=arguments.opset)
    )
    _show_written(console, arguments, {"onnx": ".onnx"})
    return DONE


def _show_fidelity(console: Any, swap: Any) -> None:
    """`swap_norms` has insisted on exactness where it is promised; say how exact it is."""
    exact = all(site.verdict in ("exact", "refused") for site in swap.report.sites)
    if not exact or not swap.differences:
        return  # the report says how well the sites fit, or why nothing was compared
    worst = max(swap.differences, key=swap.differences.get)
    console.print(
        "largest difference from the source, on random inputs: "
        f"{swap.differences[worst]:.1e} standard deviations, at '{worst}'",
        markup=False,
    )


def _load(arguments: argparse.Namespace):
    from kerasnorm.loading.load import load

    return load(arguments.model, allow_custom_code=arguments.allow_custom_code)


def _check_outputs(arguments: argparse.Namespace, outputs: dict[str, str]) -> None:
    """Refuse, before any work, an output that could not be written in the end."""
    if getattr(arguments, "onnx", None):
        _check_opset(arguments.opset)
    seen: dict[Path, str] = {}
    for option, suffix in outputs.items():
        path = getattr(arguments, option.strip("-"))
        if path is None:
            continue
        if path.suffix != suffix:
            raise RequestError(f"{option} must name a {suffix} file. Received: '{path}'.")
        if not path.parent.is_dir():
            raise RequestError(
                f"The folder of {option} must exist. Received: '{path}'.", hint="Create it first."
            )
        if path.is_dir():
            raise RequestError(f"'{path}' is a folder. {option} must name a file.")
        if path.exists() and not arguments.force:
            raise RequestError(f"'{path}' exists.", hint="Pass --force to replace it.")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise RequestError(f"{other} and {option} both name '{path}'.")
        if path.exists() and Path(arguments.model).exists() and path.samefile(arguments.model):
            raise RequestError(f"{option} must not name the model itself. Received: '{path}'.")


def _check_opset(opset: int) -> None:
    from kerasnorm.onnx.export import check_opset

    try:
        check_opset(opset)
    except ExportError as error:
        raise RequestError(str(error)) from error


def _console(arguments: argparse.Namespace):
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(quiet=arguments.quiet, highlight=False, width=width)


def _show(console: Any, report: Any) -> None:
    console.print(report.summary(), markup=False)
    if report.sites:
        console.print(report.table())
    for line in report.remarks():
        console.print(f"- {line}", markup=False)


def _show_export(console: Any, export: Any) -> None:
    ops = ", ".join(f"{count} {op}" for op, count in sorted(export.op_counts.items()))
    console.print(f"ONNX opset {export.opset}: {ops}", markup=False)
    console.print(
        f"largest difference between Keras and ONNX Runtime: {export.max_difference:.1e} of its "
        "output's scale"
    )


def _show_written(console: Any, arguments: argparse.Namespace, outputs: dict[str, str]) -> None:
    for option in outputs:
        path = getattr(arguments, option.strip("-"))
        if path is not None:
            console.print(f"wrote {path}", markup=False)


def _one_line(problem: Exception) -> str:
    if isinstance(problem, KerasNormError):
        return str(problem)
    from kerasnorm.onnx.reason import reason

    return f"{type(problem).__name__}: {reason(problem)} (--debug shows where)"


def _complain(text: str, code: int) -> int:
    print(f"kerasnorm: {text}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Nothing that Keras, TensorFlow or absl have to say is about what the user asked."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    import keras

    shown = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if shown:
            keras.config.enable_interactive_logging()


if __name__ == "__main__":
    sys.exit(main())
