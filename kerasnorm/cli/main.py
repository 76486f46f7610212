"""The command line: `kerasnorm demo | inspect | swap | fold | export`.

Exit codes: 0 done; 1 the work failed (parity broken; something refused, no BatchNorm found, or a
warning, under --strict); 2 the request was wrong; 130 interrupted. Errors are one plain line on
stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kerasnorm.cli import quiet_start, requests
from kerasnorm.cli.requests import RequestError
from kerasnorm.errors import DataError, KerasNormError, LoadError
from kerasnorm.fit.sample_limit import LEAST_SAMPLES, MAX_SAMPLES
from kerasnorm.targets.names import NAMES
from kerasnorm.version import __version__

FAILED, WRONG_REQUEST = 1, 2

_EXAMPLES = """\
examples:
  kerasnorm demo
  kerasnorm inspect model.h5
  kerasnorm swap model.h5 --to weight --output swapped.keras --onnx swapped.onnx
  kerasnorm swap model.h5 --to layer --data images.npy --output swapped.keras --plot swap.png
  kerasnorm swap model.h5 --to layer --data folder_of_images --output swapped.keras
  kerasnorm swap model.h5 --to cosine --data images.npy --distill --output swapped.keras
  kerasnorm fold model.h5 plain.keras --onnx plain.onnx --report fold.json
  kerasnorm fold swapped.keras plain.keras
  kerasnorm export plain.keras plain.onnx
"""


_MODEL = (
    "a .keras, .h5 or .hdf5 file of any Keras; a .json configuration with its weights beside it; "
    "or the folder of the two"
)


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
        requests.check(arguments)
        if not arguments.debug:
            quiet_start.import_keras()
        with (
            contextlib.nullcontext() if arguments.debug else _silent_libraries(),
            _without_bars() if arguments.quiet else contextlib.nullcontext(),
        ):
            return _run(arguments)
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


def _run(arguments: argparse.Namespace) -> int:
    from kerasnorm.cli import commands

    return getattr(commands, arguments.command)(arguments)


def _number_or(word: str, number: Callable[[str], float], must: str) -> Callable[[str], Any]:
    """Reads a number, or one word instead."""

    def read(text: str) -> float | str:
        try:
            return text if text == word else number(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be {must}, or {word}. Received: {text}"
            ) from None

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0. Received: {text}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kerasnorm",
        description="Take BatchNorm out of a trained Keras model, keep what it knows, ship it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str):
        sub = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=name)
        sub.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
        sub.add_argument("--quiet", action="store_true", help="print errors only")
        sub.add_argument(
            "--allow-custom-code",
            action="store_true",
            help="run functions stored in the model file; only for files you trust",
        )
        return sub

    command("demo", "the whole story on real data, nothing to download")

    inspect = command("inspect", "say what a swap would do to each BatchNorm")
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    inspect.add_argument("--json", action="store_true", help="print JSON and nothing else")

    swap = command("swap", "replace a model's BatchNorm by another normalization")
    swap.add_argument("model", metavar="MODEL", help=_MODEL)
    swap.add_argument(
        "--to",
        required=True,
        choices=list(NAMES),
        help="the normalization to use: " + "; ".join(target.help for target in NAMES.values()),
    )
    swap.add_argument(
        "--data",
        metavar="X.npy|X.npz[:KEY]|FOLDER",
        help="unlabeled inputs to fit to: a file of arrays; or a folder of images, of which the "
        "model gets pixels from 0 to 255 at the size of its input",
    )
    swap.add_argument(
        "--max-samples",
        type=_number_or("all", int, f"a whole number of at least {LEAST_SAMPLES}"),
        metavar="N|all",
        help="how many samples of the data to use at most, drawn at random; default "
        f"{MAX_SAMPLES}, and for --distill all, which it holds in memory",
    )
    swap.add_argument(
        "--time-budget",
        type=_seconds,
        metavar="SECONDS",
        help="how long fits and the training after them may take, --distill aside",
    )
    swap.add_argument(
        "--distill",
        action="store_true",
        help="then train it on the same data to answer as the source does",
    )
    swap.add_argument(
        "--damping",
        type=_number_or("auto", float, "a number of at least 0"),
        default="auto",
        metavar="A|auto",
        help="how far what is fitted may fall back to what BatchNorm computes, 0 not at all; "
        "default auto, no further than held-out samples ask for",
    )
    swap.add_argument(
        "--groups",
        type=_number_or("auto", int, "a whole number of at least 1"),
        metavar="N|auto",
        help="of channels, for --to group; default 32, or as many as leave 16 channels in each; "
        "auto, by site what the answers ask for",
    )
    swap.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the sampling and the training; default 0",
    )
    swap.add_argument("--output", type=Path, metavar="OUT.keras", help="write the swapped model")
    swap.add_argument("--onnx", type=Path, metavar="OUT.onnx", help="write it as ONNX, checked")
    swap.add_argument("--report", type=Path, metavar="OUT.json", help="write the report as JSON")
    swap.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the report")
    swap.add_argument(
        "--strict",
        action="store_true",
        help="fail, and write nothing, if any site is refused or there is any warning",
    )
    swap.add_argument(
        "--allow-unlike-data",
        action="store_true",
        help="use data whose scale is far from that of the training",
    )
    _add_opset(swap)
    _add_force(swap)

    fold = command(
        "fold",
        "fold BatchNorm, and what a swap made of it, into plain Keras layers, exactly",
    )
    fold.add_argument("model", metavar="MODEL", help=_MODEL)
    fold.add_argument("output", type=Path, metavar="OUT.keras", help="the file to write")
    fold.add_argument("--onnx", type=Path, metavar="OUT.onnx", help="write it as ONNX, checked")
    fold.add_argument(
        "--report",
        type=Path,
        metavar="OUT.json",
        help="write which layer took in each BatchNorm, as JSON",
    )
    _add_opset(fold)
    _add_force(fold)

    export = command("export", "write a model as ONNX and check it in ONNX Runtime")
    export.add_argument("model", metavar="MODEL", help=_MODEL)
    export.add_argument("onnx", type=Path, metavar="OUT.onnx", help="the file to write")
    _add_opset(export)
    _add_force(export)
    return parser


def _examples(command: str) -> str:
    """The examples of one command."""
    first, *lines = _EXAMPLES.splitlines()
    return "\n".join([first, *(line for line in lines if line.split()[1] == command)])


def _add_opset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--opset", type=int, default=17, metavar="N", help="of the ONNX operators; default 17"
    )


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")


def _one_line(problem: Exception) -> str:
    if isinstance(problem, KerasNormError):
        return str(problem)
    from kerasnorm.onnx.error_text import reason

    return f"{type(problem).__name__}: {reason(problem)} (--debug shows where)"


def _complain(text: str, code: int) -> int:
    # Names come from files, and a terminal obeys what it is sent.
    plain = "".join(c if c.isprintable() else " " for c in text)
    print(f"kerasnorm: {plain}", file=sys.stderr)
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
