"""How faithful fitted swaps are on the nets of `bench_nets.py`, beside those of another commit.

    python tools/train_bench.py
    python tools/bench_fidelity.py [--half showing] [--draws 5] [--images 512] [--beside FOLDER]
    python tools/bench_fidelity.py --draws 1 --distill [10000]

For each net and kind of swap the differing answers in percent: samples of the test set (up to
3,000) that get another class than from the source, pixels of a mask that get another side, 1 − R²
of what is neither. With several draws of the calibration data the mean stands first and the worst
after the slash. In brackets stand the points of accuracy lost, for classes. `--distill` adds the
same swapped models, of the first draw, trained to answer as their source on so many unlabeled
training samples. `--beside` takes a checkout of another commit, which is measured in a process of
its own. Below stand the geometric means, their ratios, the points lost, mean and worst, and in how
many of the results with data the truth on the test set is within the interval of the report.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

# Without oneDNN, TensorFlow has no convolution with channels first on a CPU.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
from bench_nets import CHOOSING, NETS, SHOWING, Split

import kerasnorm

HALVES = {"choosing": CHOOSING, "showing": SHOWING}
KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "layer, no data": ("layer", False, {}),
    "layer": ("layer", True, {}),
    "group, no data": ("group", False, {}),
    "group": ("group", True, {}),
    "group, 32": ("group", True, {"groups": 32}),
    "group, auto": ("group", True, {"groups": "auto"}),
    "cosine, pure": ("cosine", True, {"damping": 0.0}),
    "cosine": ("cosine", True, {}),
}
# Which are distilled as well, on request.
DISTILLED = ("layer", "cosine")
_MOST = 3000
# What differing answers of none count as in a geometric mean, in percent.
_LEAST = 0.05
_ROUNDING = 1e-9
Row = dict[str, Any]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="the trained nets")
    parser.add_argument("--half", choices=HALVES, default="showing")
    parser.add_argument("--nets", nargs="*", metavar="NAME", help="of the half; default all")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--draws", type=int, default=5, metavar="N")
    parser.add_argument("--images", type=int, default=512, metavar="N")
    parser.add_argument("--distill", type=int, nargs="?", const=10_000, default=0, metavar="N")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="a checkout to compare with")
    parser.add_argument("--rows", action="store_true", help="print the results only, as JSON lines")
    arguments = parser.parse_args()
    names = arguments.nets or list(HALVES[arguments.half])
    if arguments.rows:
        for name in names:
            for row in measured(arguments, name):
                print(json.dumps(row), flush=True)
        return
    print_table(names, *(rows_of(root) for root in (Path("."), arguments.beside) if root))


def rows_of(root: Path) -> list[Row]:
    """The results of a checkout, in a process of its own."""
    found = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--rows"],
        env={**os.environ, "PYTHONPATH": str(root.resolve()), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return [json.loads(line) for line in found.stdout.splitlines()]


def measured(arguments: argparse.Namespace, name: str) -> list[Row]:
    """The results of a net, one for each kind of swap and draw."""
    warnings.simplefilter("ignore")
    data = NETS[name].data(arguments.material)
    source = kerasnorm.load_model(arguments.folder / f"{name}.keras")
    x, y = data.test_x[:_MOST], data.test_y[:_MOST]
    expected = source.predict(x, batch_size=250, verbose=0)
    arguments_of = inspect.signature(kerasnorm.swap_norms).parameters
    automatic = arguments_of["damping"].default == "auto"
    rows = []
    for kind, (target, with_data, options) in KINDS.items():
        if kind not in arguments.kinds or (kind == "cosine" and not automatic):
            continue  # of an older checkout, the pure one is all that there was
        if target == "group" and "groups" not in arguments_of:
            continue
        for draw in range(arguments.draws if with_data else 1):
            some = calibration(data, arguments.images, draw) if with_data else None
            swap = kerasnorm.swap_norms(source, target, some, seed=draw, **options)
            row = {"net": name, "kind": kind, "draw": draw, **scores(swap.model, x, y, expected)}
            if with_data:
                row["interval"] = interval_of(swap.report)
                row["became"] = swap.report.counts()
            rows.append(row)
            if arguments.distill and draw == 0 and kind in DISTILLED:
                kerasnorm.distill(swap.model, source, data.x[: arguments.distill], seed=draw)
                found = scores(swap.model, x, y, expected)
                rows.append({"net": name, "kind": f"{kind}, distilled", "draw": draw, **found})
    return rows


def scores(model: Any, x: np.ndarray, y: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Differing answers, and for classes the points of accuracy lost."""
    received = model.predict(x, batch_size=250, verbose=0)
    found = {"differing": differing_answers(expected, received)}
    if np.issubdtype(y.dtype, np.integer):
        right = [np.mean(answers.argmax(-1) == y) for answers in (expected, received)]
        found["lost"] = 100 * float(right[0] - right[1])
    return found


def calibration(data: Split, count: int, draw: int) -> np.ndarray:
    """Unlabeled training samples."""
    order = np.random.default_rng(100 + draw).permutation(len(data.x))
    return data.x[order[:count]]


def differing_answers(expected: np.ndarray, received: np.ndarray) -> float:
    """See the top of this file."""
    if expected.ndim == 2:
        return 100 * float(np.mean(expected.argmax(1) != received.argmax(1)))
    if is_mask(expected):
        return 100 * float(np.mean((expected > 0.5) != (received > 0.5)))
    spread = np.square(expected - expected.mean(0)).mean()
    return 100 * float(np.square(received - expected).mean() / spread)


def is_mask(expected: np.ndarray) -> bool:
    """Whether most outputs are near 0 or 1."""
    return bool(np.mean(np.abs(expected - 0.5) > 0.45) > 0.8)


def interval_of(report: Any) -> list[float] | None:
    """That of the report, as differing answers; None where there is none, or it is of R²."""
    found = getattr(report.agreement, "interval", None)
    if found is None or report.agreement.same_answers is None:
        return None
    return [100 * (1 - end) for end in reversed(found)]


def print_table(names: list[str], rows: list[Row], others: list[Row] | None = None) -> None:
    """A line for each net, geometric means, and how often intervals hold."""
    kinds = [*KINDS, *(f"{kind}, distilled" for kind in DISTILLED)]
    columns = [(kind, rows) for kind in kinds]
    columns += [(kind, others) for kind in kinds] if others else []
    columns = [(kind, of) for kind, of in columns if any(row["kind"] == kind for row in of)]
    heads = [kind if of is rows else f"{kind}, beside" for kind, of in columns]
    print_line(["net", *heads])
    print_line(["---"] * (1 + len(heads)))
    for name in names:
        found = [[r for r in of if (r["net"], r["kind"]) == (name, kind)] for kind, of in columns]
        print_line([name, *map(cell, found)])
    means = [geometric_mean([r for r in of if r["kind"] == kind]) for kind, of in columns]
    print_line(["geometric mean", *(f"{mean:.2f}" for mean in means)])
    by_head = dict(zip(heads, means, strict=True))
    for kind in KINDS:
        before = by_head.get(f"{kind}, beside", by_head.get("cosine, pure, beside"))
        if others and before and kind in by_head:
            print(f"{kind}: {by_head[kind] / before:.2f} of what it was")
    for head, (kind, of) in zip(heads, columns, strict=True):
        lost = [row["lost"] for row in of if row["kind"] == kind and "lost" in row]
        if lost:
            print(f"points lost, {head}: mean {np.mean(lost):.2f}, worst {max(lost):.2f}")
    known = [row for row in rows if row.get("interval")]
    ends = [(*row["interval"], row["differing"]) for row in known]
    within = [low - _ROUNDING <= found <= high + _ROUNDING for low, high, found in ends]
    if known:
        print(f"within the reported interval: {sum(within)} of {len(within)}")


def cell(found: list[Row]) -> str:
    """Mean and worst of the differing answers, and mean points lost."""
    differing = [row["differing"] for row in found]
    worst = f" / {max(differing):.2f}" if len(found) > 1 else ""
    lost = [row["lost"] for row in found if "lost" in row]
    return f"{np.mean(differing):.2f}{worst}" + (f" ({np.mean(lost):+.2f})" if lost else "")


def geometric_mean(rows: list[Row]) -> float:
    """Of the differing answers."""
    return float(np.exp(np.mean([np.log(max(row["differing"], _LEAST)) for row in rows])))


def print_line(cells: list[str]) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
