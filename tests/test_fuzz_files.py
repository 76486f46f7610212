"""Broken files of trained models end in an answer or a plain refusal; and the tool sees others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import material

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        import fuzz_files

        yield fuzz_files


@pytest.mark.parametrize(
    ("seed", "count"), [(11, 8), pytest.param(12, 300, marks=pytest.mark.slow)]
)
def test_broken_files(seed, count):
    environment = {**os.environ, "KERASNORM_MATERIAL": str(material("models").parent)}
    command = [sys.executable, TOOLS / "fuzz_files.py", "--real", "1"]
    command += ["--seed", str(seed), "--count", str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{count} in" in done.stdout


def test_processes_say_how_they_end_and_keep_to_their_limits(tool, tmp_path):
    within = tool.Limits(seconds=60)
    done = tool.forked.run(print, "hello", temporary=tmp_path, limits=within)
    assert (done.code, done.stdout, done.stderr, done.stopped) == (0, "hello\n", "", "")
    # looked up while it runs: one that ends at once may be over by then
    slept = tool.forked.run(time.sleep, 1, temporary=tmp_path, limits=within)
    assert slept.code == 0
    assert 0 < slept.memory < within.memory
    assert tool.forked.run(int, "3", temporary=tmp_path, limits=within).code == 3
    failed = tool.forked.run(int, "three", temporary=tmp_path, limits=within)
    assert tool.judge(failed, swap=False)[0] == "traceback"
    for limits, stopped in ((tool.Limits(seconds=0.1), "hang"), (tool.Limits(memory=1), "memory")):
        done = tool.forked.run(time.sleep, 60, temporary=tmp_path, limits=limits)
        assert (done.code, done.stopped) == (-signal.SIGKILL, stopped)


def run(tool, code, stderr="", stopped="", written=()):
    return tool.Run(code, 1.0, 1, "", stderr, frozenset(written), stopped)


@pytest.mark.parametrize(
    ("outcome", "code", "more"),
    [
        ("exit 2", 2, {"stderr": "kerasnorm: no.\n"}),
        ("no message", 1, {"stderr": "no\n"}),
        ("traceback", 1, {"stderr": "kerasnorm: no.\nTraceback (most recent call last)\n"}),
        ("crash", -11, {}),
        ("hang", -9, {"stopped": "hang"}),
        ("memory", -9, {"stopped": "memory"}),
        ("exit code", 3, {"stderr": "kerasnorm: no.\n"}),
        ("output file", 1, {"stderr": "kerasnorm: no.\n", "written": ["out.keras"]}),
        ("no output", 0, {"written": ["out.keras"]}),
        ("exit 0", 0, {"written": ["out.keras", "out.json"]}),
    ],
)
def test_how_an_end_is_judged(outcome, code, more, tool):
    assert tool.judge(run(tool, code, **more), swap=True)[0] == outcome


def test_answers_that_differ_are_wrong(tool):
    x = np.ones((2, 3))
    assert tool.difference([x], [x + 1e-6], "weight") == ""
    assert "differs by" in tool.difference([x], [x + 1e-2], "weight")
    assert tool.difference([x], [x + 1e-2], "layer") == ""
    assert "not finite" in tool.difference([x], [x * np.nan], "layer")
    assert "instead of" in tool.difference([x], [x[:1]], "weight")
