"""What the README shows runs as it stands."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from kerasnorm.cli.main import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(sum(kind == "python" for kind, _ in BLOCKS)))
def test_python_blocks_run(number, tmp_path, monkeypatch):
    code = [text for kind, text in BLOCKS if kind == "python"][number]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which end no program of a reader
        exec(code, {})


def test_command_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_models.conv_bn_relu().save("model.keras")
    np.save("images.npy", np.random.default_rng(0).normal(size=(40, 8, 8, 3)))
    lines = [
        line.split("#")[0].split()[1:]
        for kind, text in BLOCKS
        if kind == "bash"
        for line in text.splitlines()
        if line.startswith("kerasnorm ")
    ]
    assert len(lines) == 6
    for arguments in lines:
        assert main([argument.replace("model.h5", "model.keras") for argument in arguments]) == 0


def test_the_first_commands_are_those_that_ci_runs():
    install, test = next(text for kind, text in BLOCKS if kind == "sh").splitlines()
    assert install.endswith("kerasnorm demo")
    assert "pytest" in test
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
