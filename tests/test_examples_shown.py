"""The examples that show why normalization works: they run, with their tables and figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import material

_EXAMPLES = Path(__file__).parents[1] / "examples"
_NORMS = ["none", "batch", "layer", "weight", "cosine"]


def run(name, folder):
    """What a quick run prints; its figure is checked."""
    figure = folder / "figure.png"
    command = [sys.executable, str(_EXAMPLES / name), "--quick", "--output", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert done.stdout.endswith(f"written: {figure}\n")
    return done.stdout.splitlines()


def table(lines, start, count, width):
    """The rows of a table by their names, which take up `width` characters."""
    (first,) = (n for n, line in enumerate(lines) if line.startswith(start))
    rows = lines[first + 2 : first + 2 + count]
    return {row[:width].strip(): row[width:].split() for row in rows}


@pytest.mark.slow
def test_activation_drift(tmp_path):
    material("data", "fashion_mnist.npz")
    rows = table(run("activation_drift.py", tmp_path), "8 sigmoid layers", 6, 18)
    assert list(rows) == ["none", "batch", "layer", "weight", "weight, data_init", "cosine"]
    assert all(len(cells) == 5 for cells in rows.values())
    # what it is there to show is seen in a few steps
    drifts = {name: float(cells[2]) for name, cells in rows.items()}
    assert all(drifts["batch"] < drift for name, drift in drifts.items() if name != "batch")


@pytest.mark.slow
def test_why_normalization_works(tmp_path):
    lines = run("why_normalization_works.py", tmp_path)
    depth = table(lines, "(a)", 6, 20)
    assert list(depth) == [*_NORMS, "weight, data_init"]
    halved, doubled = (float(depth["none"][n]) for n in (0, 2))
    assert halved < 0.1
    assert doubled > 10
    assert all(0.5 < float(cell) < 1 for cell in depth["batch"][:3])
    # the table of invariances, with ε
    assert table(lines, "(b)", 6, 20) == {
        "none": ["10", "10", "1", "10", "1", "10"],
        "batch": ["1", "1", "0.1", "1", "0.1", "1"],
        "layer": ["1", "1", "0.1", "1", "0.1", "1"],
        "weight": ["1", "1", "0.1", "10", "1", "10"],
        "cosine": ["1", "1", "0.1", "1", "0.1", "1"],
        "cosine, bias inside": ["1", "1", "0.1", *["no", "factor"] * 3],
    }
    assert list(table(lines, "(c)", 5, 20)) == _NORMS
    (start,) = (n for n, line in enumerate(lines) if line.startswith("(d)"))
    kinds = [line[:20].strip() for line in lines[start + 1 : start + 9]]
    others = ["cosine, damping 4", "cosine, bias inside", "cosine, no bias"]
    assert kinds == [*_NORMS, *others]
