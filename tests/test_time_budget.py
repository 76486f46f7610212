"""A calibration takes no more time than it is given."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import randomize
from test_swap import batch

import kerasnorm
from kerasnorm.cli.main import main
from kerasnorm.distillation import reconstruct, training
from kerasnorm.errors import DataError
from kerasnorm.fit import time_budget
from kerasnorm.fit.time_budget import TimeBudget
from kerasnorm.swap import calibrate, pilot


@pytest.fixture(autouse=True)
def however_near(monkeypatch):
    """Training follows the fits however near these bring the answers."""
    monkeypatch.setattr(calibrate, "_NEAR_ENOUGH", -1.0)


@pytest.fixture
def source_and_data():
    source = tiny_models.conv_bn_relu()
    data = batch(source, rows=400)
    randomize(source, data)
    return source, data


class Clock:
    """Time that passes by being asked for."""

    def __init__(self, step=0.0):
        self.now, self.step = 0.0, step

    def monotonic(self):
        self.now += self.step
        return self.now


def test_seconds_that_are_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_budget, "time", clock)
    budget = TimeBudget(10)
    assert budget.is_limited
    assert (budget.left, budget.is_over(0.1)) == (10.0, False)
    assert budget.affords(2.0, share=0.4) == 2.0
    clock.now = 9.5
    assert (budget.left, budget.is_over(), budget.is_over(0.1)) == (0.5, False, True)
    clock.now = 11.0
    assert (budget.left, budget.is_over(), budget.affords(1.0)) == (0.0, True, 0.0)


def test_no_limit():
    budget = TimeBudget()
    assert not budget.is_limited
    assert not budget.is_over(0.9)
    assert budget.left == budget.affords(5.0, share=0.1) == np.inf


@pytest.mark.parametrize("seconds", [0, -1.0, "60", True, float("nan"), [3]])
def test_what_is_no_time(seconds, source_and_data):
    source, data = source_and_data
    with pytest.raises(DataError, match="must be a number of seconds above 0, or None"):
        kerasnorm.swap_norms(source, "layer", data, time_budget=seconds)


@pytest.mark.parametrize(
    "target", ["layer", *(pytest.param(t, marks=pytest.mark.slow) for t in ("group", "cosine"))]
)
def test_time_enough_changes_nothing(target, source_and_data, monkeypatch):
    monkeypatch.setattr(reconstruct, "_EPOCHS", 2)
    source, data = source_and_data
    whole, limited = (
        kerasnorm.swap_norms(source, target, data, time_budget=seconds) for seconds in (None, 1e6)
    )
    assert whole.report.to_dict() == limited.report.to_dict()
    for a, b in zip(whole.model.variables, limited.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "target", ["layer", *(pytest.param(t, marks=pytest.mark.slow) for t in ("group", "cosine"))]
)
def test_no_time_gives_a_fit_to_few_samples(target, source_and_data):
    source, data = source_and_data
    swap = kerasnorm.swap_norms(source, target, data, time_budget=1e-3)
    notes = "\n".join(swap.report.notes)
    assert "32 samples were used, for which there was time" in notes
    assert "`time_budget` is 0.001 seconds" in notes
    assert not swap.report.trained
    assert all("moves the answers" not in site.reason for site in swap.report.sites)
    assert {"calibrated"} <= {site.verdict for site in swap.report.sites}
    assert np.isfinite(np.asarray(swap.model(data[:4]))).all()


def test_as_many_samples_as_there_is_time_for(source_and_data, monkeypatch):
    source, data = source_and_data
    seen = []
    fit_model = pilot.fit_model

    def counted(source, rebuilt, tasks, batches, **settings):
        seen.append(sum(len(arrays[0]) for arrays in batches))
        clock.now += 6.4  # 0.1 for each sample
        return fit_model(source, rebuilt, tasks, batches, **settings)

    clock = Clock()
    monkeypatch.setattr(reconstruct, "_EPOCHS", 1)
    monkeypatch.setattr(pilot, "time", clock)
    monkeypatch.setattr(time_budget, "time", clock)
    monkeypatch.setattr(pilot, "fit_model", counted)
    swap = kerasnorm.swap_norms(source, "layer", data, time_budget=52.8)
    assert seen == [16, 64]
    # of 40 seconds that are left, 0.4 are for fits
    assert any("160 samples were used, for which" in note for note in swap.report.notes)


def test_epochs_are_as_many_as_there_is_time_for(source_and_data, monkeypatch):
    source, data = source_and_data
    clock = Clock()
    predict = training.LogitsModel.predict

    def slow(self, inputs, **options):
        clock.now += 0.01 * len(inputs[0])
        return predict(self, inputs, **options)

    monkeypatch.setattr(training.LogitsModel, "predict", slow)
    for module in (time_budget, training):
        monkeypatch.setattr(module, "time", clock)
    # the teacher takes 4 seconds for all samples, an epoch of training five times as long
    swap = kerasnorm.swap_norms(source, "layer", data, time_budget=132.0)
    (note,) = (n for n in swap.report.notes + swap.report.doubts if "trained for" in n)
    assert "trained for 5 epochs" in note


@pytest.mark.parametrize("size", [32, 400])
def test_a_batch_is_cut_for_time(size, source_and_data):
    source, data = source_and_data
    swap = kerasnorm.swap_norms(source, "layer", data, time_budget=1e-3, batch_size=size)
    assert [n for n in swap.report.notes if n.startswith("32 samples were used, for which")]


def test_what_was_used_is_said_once(source_and_data):
    source, data = source_and_data
    swap = kerasnorm.swap_norms(source, "layer", data, time_budget=1e-3, max_samples=200)
    assert len([note for note in swap.report.notes if "samples were used" in note]) == 1


def test_training_ends_when_the_time_is_over(source_and_data, monkeypatch):
    source, data = source_and_data
    clock = Clock()
    monkeypatch.setattr(time_budget, "time", clock)
    original = keras.callbacks.LambdaCallback

    class Slow(original):
        def __init__(self, on_train_batch_end):
            def slow(batch, logs):
                clock.now += 20.0
                on_train_batch_end(batch, logs)

            super().__init__(on_train_batch_end=slow)

    monkeypatch.setattr(keras.callbacks, "LambdaCallback", Slow)
    swap = kerasnorm.swap_norms(source, "layer", data, time_budget=1000.0)
    (note,) = (note for note in swap.report.notes + swap.report.doubts if "trained for" in note)
    # 45 steps of ten each fit into nine tenths of the time
    assert "trained for 5 epochs" in note


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "nan"])
def test_the_command_line_refuses_what_is_no_time(seconds, capsys, tmp_path):
    assert main(["swap", str(tmp_path / "x"), "--to", "layer", "--time-budget", seconds]) == 2
    assert "must be a number of seconds above 0" in capsys.readouterr().err


def test_the_command_line_keeps_to_the_time(source_and_data, tmp_path, capsys):
    source, data = source_and_data
    source.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", data)
    files = [str(tmp_path / "model.keras"), "--data", str(tmp_path / "x.npy")]
    assert main(["swap", *files, "--to", "layer", "--time-budget", "0.001"]) == 0
    assert "32 samples were used, for which" in " ".join(capsys.readouterr().out.split())
