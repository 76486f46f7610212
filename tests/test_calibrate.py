"""Of what a swapped model was on its way, the answers to unseen samples decide what stays."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import every_site, randomize
from test_swap import batch

import kerasnorm
from kerasnorm import LayerNorm
from kerasnorm.distillation.answer_loss import AnswerLoss
from kerasnorm.distillation.reconstruct import Reconstruction
from kerasnorm.graph.graph import graph_of
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.swap import calibrate


def source_and_data(rows=120):
    source = tiny_models.residual()
    data = batch(source, rows=rows)
    randomize(source, data)
    return source, data


def norms(model):
    return [layer for layer in model.layers if isinstance(layer, LayerNorm)]


@pytest.fixture
def ruined_fits(monkeypatch):
    """Fits that make everything worse."""
    fit_model = calibrate.fit_model

    def ruined(source, rebuilt, tasks, batches, **settings):
        found = fit_model(source, rebuilt, tasks, batches, **settings)
        for task in tasks:
            task.layer.gamma.assign(-3.0 * task.layer.gamma)
            task.layer.epsilon = 7.0
        return found

    monkeypatch.setattr(calibrate, "fit_model", ruined)


@pytest.mark.parametrize("rows", [40, 120])
def test_fits_that_answer_worse_than_statistics_are_left_out(rows, ruined_fits, closed_form):
    source, data = source_and_data(rows)
    without = kerasnorm.swap_norms(source, "layer", sites=every_site)
    swap = kerasnorm.swap_norms(source, "layer", data, sites=every_site)
    for a, b in zip(swap.model.variables, without.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [n.epsilon for n in norms(swap.model)] == [n.epsilon for n in norms(without.model)]
    assert {site.verdict for site in swap.report.sites} == {"matched"}
    assert all(site.fit is not None for site in swap.report.sites)
    (note,) = (note for note in swap.report.notes if "the fits are left out" in note)
    assert "from stored statistics are nearer" in note


def test_fits_that_answer_better_stay(closed_form):
    source, data = source_and_data()
    swap = kerasnorm.swap_norms(source, "layer", data, sites=every_site)
    assert {site.verdict for site in swap.report.sites} == {"calibrated"}
    assert not any("left out" in note for note in swap.report.notes + swap.report.warnings)
    without = kerasnorm.swap_norms(source, "layer", sites=every_site)
    loss = AnswerLoss(graphs_of(source), [data[4::10]])
    assert loss.of(graph_of(swap.model)) < loss.of(graph_of(without.model))


def test_of_very_few_samples_none_chooses(ruined_fits, closed_form):
    source, data = source_and_data(30)
    swap = kerasnorm.swap_norms(source, "layer", data, sites=every_site)
    assert {site.verdict for site in swap.report.sites} == {"calibrated"}


def test_training_that_answers_worse_is_left_out(monkeypatch):
    monkeypatch.setattr(calibrate, "_NEAR_ENOUGH", -1.0)
    source, data = source_and_data()
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)
    fitted = kerasnorm.swap_norms(source, "layer", data)

    def ruin(self, model, layers, seed, budget):
        for layer in layers:
            for variable in layer.variables:
                variable.assign(0.3 * variable)
        return True

    monkeypatch.setattr(Reconstruction, "run", ruin)
    swap = kerasnorm.swap_norms(source, "layer", data)
    assert not swap.report.trained
    assert any("the training is left out" in note for note in swap.report.warnings)
    for a, b in zip(swap.model.variables, fitted.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loss_is_the_sum_over_outputs():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3, activation="softmax")(inputs), keras.layers.Dense(2)(inputs)]
    source = keras.Model(inputs, outputs)
    copy = keras.models.clone_model(source)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    (p, t), (q, s) = ([np.asarray(y, "float64") for y in model(x)] for model in (source, copy))
    expected = (p * np.log(p / q)).sum(-1).mean() + np.square(s - t).mean() / t.var(0).mean()
    assert AnswerLoss(graphs_of(source), [x]).of(graph_of(copy)) == pytest.approx(
        expected, rel=1e-4
    )
    copy.layers[-1].bias.assign([np.nan, 0])
    assert AnswerLoss(graphs_of(source), [x]).of(graph_of(copy)) == np.inf
