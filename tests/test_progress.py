"""The progress bar: after a few seconds, on a terminal, unless asked not to."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tiny_models

import kerasnorm
from kerasnorm import progress
from kerasnorm.distillation import reconstruct


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", -1.0)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(reconstruct, "_EPOCHS", 1)


def swapped():
    x = np.random.default_rng(0).normal(size=(100, 8, 8, 3)).astype("float32")
    kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "layer", x)


@pytest.mark.usefixtures("at_once")
def test_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    swapped()
    said = capsys.readouterr()
    assert "fitting" in said.err
    assert "training" in said.err
    assert not said.out


@pytest.mark.usefixtures("at_once")
def test_the_streams_of_the_process_stay(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    streams = sys.stdout, sys.stderr
    with progress.progress("shown", 2) as advance:
        advance()
        assert (sys.stdout, sys.stderr) == streams
    assert "shown" in capsys.readouterr().err


@pytest.mark.usefixtures("at_once")
def test_not_elsewhere(capsys):
    swapped()
    assert "fitting" not in capsys.readouterr().err


@pytest.mark.usefixtures("at_once")
def test_not_where_logging_is_off(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    keras.config.disable_interactive_logging()
    try:
        swapped()
    finally:
        keras.config.enable_interactive_logging()
    assert "fitting" not in capsys.readouterr().err


def test_not_for_what_is_done_soon(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.progress("soon", 2) as advance:
        advance()
        advance()
    assert not capsys.readouterr().err
