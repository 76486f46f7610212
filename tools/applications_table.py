"""Every keras.applications model with BatchNorm, swapped to each target, as a table.

    python tools/applications_table.py [ARCHITECTURE …] [--results FOLDER] [--write FILE]

Each architecture is built at the smallest square input that it can be built for, with random
weights and BatchNorm weights to be told apart (tests/architectures.py). Then, on 32 random images:

- to weight norm: what the BatchNorm calls became; the largest difference at any of those calls
  and at the output, final softmax taken away, in standard deviations of the source's tensor there.
  In float64 it tells whether the swap is right; in float32 stands beside it what rounding alone
  does to the source at the same place, its own float32 against float64. Then the seconds of the
  swap, and how many times those of `clone_model` with `set_weights` that is, medians of a few
  turns in one process;
- to layer norm without data, and to cosine norm on sixteen images: the verdicts, and whether the
  outputs are finite.

In float32 at most 1e-4 is allowed, or 1e-3 where the source's own rounding is as large. A dagger
marks the models in which it is larger still: their random weights amplify rounding from call to
call, and the figure in float64 is the one to go by.

One process for each architecture. What it found goes to `--results` at once, and is not measured
again when the tool is started again with the same folder. Exit status 1 if a swap failed, refused
a call, is off, or is not finite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import architectures
import fidelity
from bench_swap import row, times_in_turn

import kerasnorm

ROWS = 32
SAMPLES = 16
HEADER = (
    "model", "input", "layers", "BatchNorm calls become", "float64", "float32", "float32 alone",
    "seconds", "× clone", "to layer", "to cosine",
)  # fmt: skip
FAILED = "**failed**"


def main() -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="all, if none is named")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="keep results and go on")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of the timing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table here too")
    args = parser.parse_args()
    known = architectures.architectures()
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"keras.applications has no {', '.join(unknown)}")
    without = [name for name in known if not architectures.may_have_batch_norm(name)]
    names = args.names or [name for name in known if name not in without]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.results or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [row(HEADER), row(["---"] * len(HEADER))]
        print(*lines, sep="\n", flush=True)
        for name in names:
            lines.append(row(kept(folder / f"{name}.json", name, args.rounds)))
            print(lines[-1], flush=True)
    if not args.names:
        lines += ["", f"Without BatchNorm: {', '.join(without)}."]
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")
    return int(any(FAILED in line for line in lines))


def kept(path: Path, name: str, rounds: int) -> list[str]:
    """The row of one architecture, from its file if that is there."""
    if path.exists():
        return json.loads(path.read_text())
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            cells = pool.submit(measure, name, rounds).result()
    except Exception as error:
        # the next architecture is to be tried whatever became of this one
        return [name, "", "", failed(error), *[""] * 7]
    path.write_text(json.dumps(cells))
    return cells


def measure(name: str, rounds: int) -> list[str]:
    """The row of one architecture."""
    source = architectures.smallest(name)
    x = architectures.brought_alive(source, ROWS)
    size = source.input.shape[1]
    images = architectures.images(size, SAMPLES)
    if x.min() >= 0:
        images = np.clip(127.5 + 60 * images, 0, 255)
    return [
        name,
        str(size),
        str(len(source.layers)),
        *to_weight(source, architectures.in_float64(name, source), x, rounds),
        attempt(lambda: finite(source, "layer", x)),
        attempt(lambda: finite(source, "cosine", x, images)),
    ]


def to_weight(source: keras.Model, wide: keras.Model, x: np.ndarray, rounds: int) -> list[str]:
    """The cells of the swap to weight norm."""
    exact = largest_difference(wide, kerasnorm.swap_norms(wide, "weight", strict=True), x)[0]
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    rounded, own, amplified = largest_difference(source, swap, x)
    clone, swapping = times_in_turn(source, rounds)
    took = statistics.median(swapping)
    return [
        ", ".join(f"{count} {kind}" for kind, count in swap.report.counts().items()),
        f"{exact:.0e}" + ("" if exact <= fidelity.FLOAT64_TOLERANCE else f" {FAILED}"),
        f"{rounded:.0e}" + (" †" if amplified else ""),
        f"{own:.0e}",
        f"{took:.1f}",
        f"{took / statistics.median(clone):.1f}",
    ]


def largest_difference(source: keras.Model, swap, x: np.ndarray) -> tuple[float, float, bool]:
    """The largest difference, the source's own rounding there, and whether any is too large."""
    differences = fidelity.site_differences(source, swap, x)
    own = fidelity.own_rounding(source, swap, x)
    worst = max(differences, key=lambda name: differences[name])
    too_large = any(not d <= fidelity.allowed(own[n]) for n, d in differences.items())
    return differences[worst], own[worst], too_large


def finite(source: keras.Model, target: str, x: np.ndarray, data: Any = None) -> str:
    """The verdicts of a swap, and whether the swapped model gives numbers."""
    swap = kerasnorm.swap_norms(source, target, data, strict=True)
    verdicts = Counter(site.verdict for site in swap.report.sites)
    answer = keras.ops.convert_to_numpy(swap.model(x, training=False))
    told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return told + ("; finite" if np.isfinite(answer).all() else f"; {FAILED}: not finite")


def attempt(cell: Callable[[], str]) -> str:
    """A cell, or why there is none: one that fails leaves the rest of the row."""
    try:
        return cell()
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> str:
    """What an error says, on one line."""
    return f"{FAILED}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    sys.exit(main())
