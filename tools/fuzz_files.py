"""Runs kerasnorm on broken model files, and looks for anything but an answer or a plain refusal.

    python tools/fuzz_files.py [--seed S] [--count N] [--jobs 2] [--real N] [--keep FOLDER]
    python tools/fuzz_files.py --seed S --only I   # one of them again, with all it prints

The files are those of the material folder, each broken in a way that its number and the seed decide
(mutations.py). `kerasnorm inspect` or `kerasnorm swap` then has to end in time and within the
memory, with exit code 0 and a right result, or 1 or 2, a message and nothing written.

Each command runs in a process that has imported everything before, some as `python -m kerasnorm`.
Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import forked
import numpy as np
from forked import GIGABYTE, Limits, Run
from mutations import KINDS, Mutation, mutation, mutations
from rich.console import Console
from rich.progress import track
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
ANSWERS = ("exit 0", "exit 1", "exit 2")
FAILURES = (
    "crash", "hang", "memory", "traceback", "exit code", "no message", "output file", "no output",
    "wrong",
)  # fmt: skip
# What a swap to weight norm may change, relative to the largest number of the source's answer.
TOLERANCE = 1e-4
_ROWS = 4
_UNKNOWN_LENGTH = 32
_LARGEST_BATCH = 10_000_000


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a mutation."""

    mutation: Mutation
    argv: tuple[str, ...]
    done: str  # to the file
    outcome: str  # one of ANSWERS or FAILURES
    why: str
    run: Run


def main() -> int:
    """Run the mutations and print what became of them; the exit status."""
    args = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    limits = Limits(args.limit, int(args.memory * GIGABYTE))
    folder = args.material / "models"
    if args.only is not None:
        return _again(console, mutation(folder, args.seed, args.only), limits, bool(args.real))
    real = _spread(50 if args.real is None else args.real, args.count)
    tasks = [
        (broken, limits, broken.number in real, args.keep)
        for broken in mutations(folder, args.seed, args.count)
    ]
    start = time.monotonic()
    results = []
    shown = track(_all(tasks, args.jobs), total=args.count, console=Console(stderr=True))
    with contextlib.suppress(KeyboardInterrupt):  # what there is by then is worth seeing
        for result in shown:
            results.append(result)
    minutes = (time.monotonic() - start) / 60
    _show(console, results)
    console.print(f"{len(results)} in {minutes:.1f} minutes, {len(results) / minutes:.0f} a minute")
    return int(any(result.outcome in FAILURES for result in results))


def _arguments() -> argparse.Namespace:
    material = os.environ.get("KERASNORM_MATERIAL", REPOSITORY.parent / "shared" / "material")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--material", type=Path, default=material, metavar="FOLDER", help="with models/ in it"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="how many (2000)")
    parser.add_argument("--only", type=int, metavar="I", help="this one alone; print everything")
    parser.add_argument(
        "--real", type=int, metavar="N", help="so many as `python -m kerasnorm` (50; 0 with --only)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="at a time (1)")
    parser.add_argument("--limit", type=float, default=30, metavar="SECONDS", help="for each (30)")
    parser.add_argument("--memory", type=float, default=4, metavar="GB", help="for each (4)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy what fails there")
    args = parser.parse_args()
    if not (args.material / "models").is_dir():
        parser.error(f"there is no folder '{args.material / 'models'}' (KERASNORM_MATERIAL)")
    return args


def _spread(some: int, count: int) -> set[int]:
    """So many numbers below `count`, evenly spread."""
    some = min(some, count)
    return {number * count // some for number in range(some)}


def _all(tasks: list[tuple], jobs: int) -> Iterator[Result]:
    with ThreadPool(jobs) as pool:
        yield from pool.imap_unordered(_task, tasks)


def _task(task: tuple[Mutation, Limits, bool, Path | None]) -> Result:
    broken, limits, real, keep = task
    with tempfile.TemporaryDirectory(prefix="fuzz_files_") as temporary:
        folder = Path(temporary)
        result = run_one(broken, folder, limits, real)
        if keep is not None and result.outcome in FAILURES:
            kept = keep / f"{broken.seed}-{broken.number}"
            kept.mkdir(parents=True, exist_ok=True)
            for file in broken.files:
                shutil.copyfile(folder / file.name, kept / file.name)
    return result


def run_one(broken: Mutation, folder: Path, limits: Limits, real: bool = False) -> Result:
    """Break a file, run the command on it, and judge what it did.

    Args:
        broken: What to do to which file, and the command.
        folder: An empty folder, for the file and for what the command writes.
        limits: Of the command.
        real: Whether it runs as `python -m kerasnorm`, which imports everything itself.
    """
    done = broken.write(folder)
    model, output = folder / broken.model.name, folder / "out.keras"
    argv = [broken.command[0], str(model), *broken.command[1:]]
    if broken.command[0] == "swap":
        argv += ["--output", str(output), "--report", str(output.with_suffix(".json"))]
    before = _state(folder)
    with tempfile.TemporaryDirectory(prefix="fuzz_files_") as name:  # a kill leaves files there
        temporary = Path(name)
        run = forked.run(_command, argv, real, temporary=temporary, limits=limits)
        run = dataclasses.replace(run, written=frozenset(dict(_state(folder) - before)))
        outcome, why = judge(run, swap=broken.command[0] == "swap")
        if outcome == "exit 0" and broken.command[0] == "swap":
            compared = (_compare, model, output, argv[3])
            said = forked.run(*compared, temporary=temporary, limits=limits)
            if said.code != 0:
                problem = _last_line(said.stderr) or f"exit code {said.code}"
                outcome, why = "wrong", f"{said.stopped} compared: {problem}".lstrip()
    return Result(broken, tuple(argv), done, outcome, why, run)


def _state(folder: Path) -> set[tuple[str, tuple[int, int]]]:
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {(name, (stat.st_size, stat.st_mtime_ns)) for name, stat in stats.items()}


def judge(run: Run, swap: bool) -> tuple[str, str]:
    """The outcome of a command, one of ANSWERS or FAILURES, and what tells it."""
    last = _last_line(run.stderr)
    expected = {"out.keras", "out.json"} if swap and run.code == 0 else set()
    failure = ""
    if run.stopped:
        failure = run.stopped
    elif run.code < 0:
        failure, last = "crash", f"{signal.strsignal(-run.code)}; {last}"
    elif "Traceback" in run.stdout + run.stderr:
        failure = "traceback"
    elif run.code not in (0, 1, 2):
        failure, last = "exit code", f"{run.code}; {last}"
    elif run.code != 0 and not any(s.startswith("kerasnorm: ") for s in run.stderr.splitlines()):
        failure = "no message"
    elif run.written - expected:
        failure, last = "output file", ", ".join(sorted(run.written - expected))
    elif expected - run.written:
        failure, last = "no output", ", ".join(sorted(expected - run.written))
    return failure or f"exit {run.code}", last


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _command(argv: list[str], real: bool) -> int:
    """Run kerasnorm in the process that was made for it."""
    if real:
        environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        os.execve(sys.executable, [sys.executable, "-m", "kerasnorm", *argv], environment)
    from kerasnorm.cli.main import main

    return main(argv)


def _compare(model: Path, output: Path, target: str) -> int:
    """Whether a swapped model answers as the file that it comes from: 0, or 1 with a message."""
    import keras

    import kerasnorm

    source, swapped = kerasnorm.load_model(model), kerasnorm.load_model(output)
    try:
        x = keras.tree.map_structure(_random, source.input)
        expected = _answers(source, x)
    except Exception as error:
        # a broken model need not run at all; there is nothing to compare with then
        print("not compared:", error)
        return 0
    problem = difference(expected, _answers(swapped, x), target)
    if problem:
        print(problem, file=sys.stderr)
    return int(bool(problem))


def _random(tensor: Any) -> np.ndarray:
    rows, *rest = tensor.shape
    shape = [rows or _ROWS, *(length or _UNKNOWN_LENGTH for length in rest)]
    if np.prod(shape, dtype=float) > _LARGEST_BATCH:
        raise ValueError(f"{shape} is too much.")
    rng = np.random.default_rng(0)
    if "int" in tensor.dtype or tensor.dtype == "bool":
        return rng.integers(0, 2, shape).astype(tensor.dtype)
    return rng.normal(size=shape).astype("float32")


def _answers(model: Any, x: Any) -> list[np.ndarray]:
    import keras

    answers = keras.tree.flatten(model(x, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in answers]


def difference(expected: list[np.ndarray], answers: list[np.ndarray], target: str) -> str:
    """What is wrong with a swapped model's answers; empty if nothing is.

    To weight norm they are the source's up to rounding, and not finite where those are not. To
    layer norm, where one number reaches all channels, they are finite if all of those are.
    """
    if [y.shape for y in expected] != [y.shape for y in answers]:
        return f"{[y.shape for y in answers]} instead of {[y.shape for y in expected]}"
    for ours, theirs in zip(answers, expected, strict=True):
        finite = np.isfinite(theirs)
        if target == "layer":
            if finite.all() and not np.isfinite(ours).all():
                return "not finite, where the source is"
            continue
        if (finite != np.isfinite(ours)).any():
            return "not finite in other places than the source"
        apart = np.abs(ours[finite].astype("float64") - theirs[finite])
        scale = np.abs(theirs[finite]).max(initial=0)
        if (apart > TOLERANCE * scale).any():
            return f"differs by {apart.max():.1e}, the scale being {scale:.1e}"
    return ""


def _again(console: Console, broken: Mutation, limits: Limits, real: bool) -> int:
    """Run one mutation, print all there is to know, and keep the file."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_files_{broken.seed}_{broken.number}_"))
    result = run_one(broken, folder, limits, real)
    for name, text in (("stdout", result.run.stdout), ("stderr", result.run.stderr)):
        console.rule(name)
        console.print(text, markup=False, soft_wrap=True)
    console.rule()
    _show_one(console, result)
    console.print(f"the files are in {folder}", markup=False, soft_wrap=True)
    return int(result.outcome in FAILURES)


def _show(console: Console, results: list[Result]) -> None:
    failed = [result for result in results if result.outcome in FAILURES]
    for result in sorted(failed, key=lambda result: result.mutation.number):
        _show_one(console, result)
    counts = Counter((result.mutation.kind, result.outcome) for result in results)
    table = Table("mutation", *ANSWERS, *FAILURES)
    for kind in KINDS:
        table.add_row(kind, *_cells(counts[kind, outcome] for outcome in ANSWERS + FAILURES))
    totals = Counter(result.outcome for result in results)
    table.add_section()
    table.add_row("all", *_cells(totals[outcome] for outcome in ANSWERS + FAILURES))
    console.print(table)
    if results:
        slowest = max(results, key=lambda result: result.run.seconds)
        largest = max(results, key=lambda result: result.run.memory)
        console.print(
            f"slowest: {slowest.run.seconds:.1f} s, number {slowest.mutation.number}; "
            f"largest: {largest.run.memory / GIGABYTE:.2f} GB, number {largest.mutation.number}"
        )


def _cells(counts: Iterable[int]) -> list[str]:
    return [str(count or "") for count in counts]


def _show_one(console: Console, result: Result) -> None:
    broken, run = result.mutation, result.run
    lines = [
        f"{broken.number} {result.outcome}: {broken.kind} {broken.target}: {result.done}",
        f"    kerasnorm {shlex.join(Path(part).name for part in result.argv)}",
        f"    {run.seconds:.1f} s, {run.memory / GIGABYTE:.2f} GB; {result.why}",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
