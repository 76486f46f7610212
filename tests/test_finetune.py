"""The example that fine-tunes with mini-batches of 2 runs; not who wins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import material

_EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_small_batches.py"
_METHODS = ["batch", "batch, frozen", "weight", "layer", "cosine"]
_BOTH = ["batch", "  statistics anew", *_METHODS[1:]]
_SECTIONS = [
    ("test accuracy, %, after 8 steps of 2 images", _BOTH),
    ("before the first step", _BOTH),
    ("learning rate", _METHODS),
]


@pytest.mark.slow
def test_quick(tmp_path):
    material("data", "fashion_mnist.npz")
    material("models", "fashion_resnet.keras")
    path = tmp_path / "finetune.png"
    command = [sys.executable, str(_EXAMPLE), "--quick", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    sections = [part.splitlines() for part in done.stdout.strip().split("\n\n")]
    assert [section[0] for section in sections] == [title for title, _ in _SECTIONS]
    for (head, *rows), (_, names) in zip([s[1:] for s in sections], _SECTIONS, strict=True):
        assert head.split("  ")[-1].strip() == "dim, in runs"
        assert [row[:18].rstrip() for row in rows] == names
    accuracies = [row for section in sections[:2] for row in section[2:]]
    assert all(row.count("..") == 4 for row in accuracies)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_lesson_in_runs_is_the_shuffled_one_in_another_order(monkeypatch):
    material("data", "fashion_mnist.npz")
    monkeypatch.syspath_prepend(_EXAMPLE.parent)
    import finetune_small_batches as example

    protocol = example.Protocol()
    tasks, _ = example.load(protocol)
    shuffled, in_runs = tasks["dim, shuffled"], tasks["dim, in runs"]
    lesson = in_runs.lesson(0)
    assert sorted(lesson) == sorted(shuffled.lesson(0))
    kinds = [len(set(in_runs.y[lesson[first : first + 20]])) for first in range(0, 800, 20)]
    assert max(kinds) <= 2
    parts = [in_runs.validation, in_runs.test, in_runs.search, in_runs.pool]
    assert len(set().union(*parts)) == sum(map(len, parts))
