"""Models that take batches of one size only: every way in cuts what it is given into such."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers, ops

import kerasnorm
from kerasnorm.cli.main import main
from kerasnorm.errors import DataError

SIZE = 4
X = np.random.default_rng(0).normal(1, 2, (102, 5, 4)).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class OfFour(layers.Layer):
    """Gives what it gets, if that is four samples."""

    def call(self, x):
        return ops.reshape(ops.reshape(x, (-1,)), (SIZE, *x.shape[1:]))


def made_for_four():
    stack = [layers.Conv1D(6, 2), OfFour(), layers.BatchNormalization(name="bn")]
    head = [layers.GlobalAveragePooling1D(), layers.Dense(2, activation="softmax")]
    return keras.Sequential([keras.Input((5, 4), batch_size=SIZE), *stack, *head])


def stateful():
    stack = [
        layers.Bidirectional(layers.GRU(3, stateful=True, return_sequences=True)),
        layers.BatchNormalization(name="bn"),
    ]
    head = [layers.GlobalAveragePooling1D(), layers.Dense(2)]
    return keras.Sequential([keras.Input((5, 4), batch_size=SIZE), *stack, *head])


@pytest.fixture(params=[made_for_four, stateful])
def model(request):
    keras.utils.set_random_seed(0)
    return request.param()


def stream(size):
    return iter([X[first : first + size] for first in range(0, len(X), size)])


@pytest.mark.filterwarnings("ignore::kerasnorm.FidelityWarning")
@pytest.mark.parametrize("cut", [lambda: X, lambda: stream(7)])
def test_data_of_any_size_calibrates(model, cut):
    report = kerasnorm.swap_norms(model, "layer", cut(), sites=["bn"]).report
    assert report.sites[0].fit > 0.5
    left_out = "2 samples were left out, which would not fill a batch: the model takes 4 at a time"
    assert left_out in report.notes


@pytest.mark.filterwarnings("ignore::kerasnorm.FidelityWarning")
def test_a_subset_is_of_whole_batches(model):
    notes = kerasnorm.swap_norms(model, "layer", X, sites=["bn"], max_samples=22).report.notes
    assert notes[0].startswith("20 of 102 samples were used")
    assert not any("left out" in note for note in notes)


def test_less_than_a_batch_is_refused():
    inputs = keras.Input((4,), batch_size=24)
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(layers.Dense(4)(inputs)))
    few = np.ones((20, 4), "float32")
    swap = kerasnorm.swap_norms(model, "weight")
    for act in (
        lambda: kerasnorm.swap_norms(model, "layer", few, sites=["bn"]),
        lambda: kerasnorm.distill(swap.model, model, few),
        lambda: swap.compare(few),
        lambda: swap.update_report(few),
    ):
        with pytest.raises(DataError, match=r"which takes 24 samples at a time\. Received 20\."):
            act()
    with pytest.raises(DataError, match="fill a batch of the model, 24 samples"):
        kerasnorm.estimate_statistics(model, few)
    more = np.ones((96, 4), "float32")
    with pytest.raises(DataError, match=r"Received 10 of them\. Give 240 samples or more"):
        kerasnorm.distill(swap.model, model, more)
    history = kerasnorm.distill(swap.model, model, np.ones((240, 4), "float32"), epochs=1)
    assert len(history.epoch) == 1


def test_compare_looks_at_all_whole_batches(model):
    swap = kerasnorm.swap_norms(model, "weight")
    swap.model.layers[-1].bias.assign([0.5, 0.0])
    whole = [swap.compare(X[first : first + SIZE])["output 0"] for first in range(0, 8, SIZE)]
    assert 0 < min(whole) <= swap.compare(X[:10])["output 0"] <= max(whole)
    assert swap.compare(X[:10])["bn"] < 1e-5


@pytest.mark.filterwarnings("ignore::kerasnorm.FidelityWarning")
def test_distillation_and_the_report_after_it(model):
    swap = kerasnorm.swap_norms(model, "layer", sites=["bn"])
    states = [np.array(v) for v in model.variables]
    history = kerasnorm.distill(swap.model, model, X, epochs=2, batch_size=64)
    assert history.after["loss"] <= history.before["loss"]
    assert all(np.array_equal(a, b) for a, b in zip(states, model.variables, strict=True))
    swap.update_report(np.concatenate([X, X]))
    assert swap.report.agreement.samples == 20


def test_statistics(model):
    kerasnorm.estimate_statistics(model, X)
    found = np.array(model.get_layer("bn").moving_mean)
    kerasnorm.estimate_statistics(model, stream(7))
    np.testing.assert_allclose(model.get_layer("bn").moving_mean, found, rtol=1e-5)


@pytest.mark.parametrize("inputs", [None, X[:3], X[:70]])
def test_a_file_has_the_batch_size_that_the_model_needs(tmp_path, inputs):
    model, path = made_for_four(), tmp_path / "model.onnx"
    kerasnorm.export_onnx(model, path, inputs=inputs)
    [entry] = onnx.load(path).graph.input
    assert [size.dim_value for size in entry.type.tensor_type.shape.dim] == [SIZE, 5, 4]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [answer] = session.run(None, {entry.name: X[:SIZE]})
    np.testing.assert_allclose(answer, model(X[:SIZE]), atol=1e-5)


def test_a_batch_size_that_a_model_only_states_stays_open(tmp_path):
    inputs = keras.Input((4,), batch_size=2)
    path = tmp_path / "model.onnx"
    kerasnorm.export_onnx(keras.Model(inputs, layers.Dense(3)(inputs)), path)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_command_line(tmp_path, capsys):
    model, data, file = (tmp_path / name for name in ("model.keras", "x.npy", "out.onnx"))
    made_for_four().save(model)
    np.save(data, X)
    options = ["--to", "layer", "--data", data, "--distill", "--output", tmp_path / "out.keras"]
    assert main([str(part) for part in ("swap", model, *options)]) == 0
    assert "2 samples were left out" in " ".join(capsys.readouterr().out.split())
    options = ["--to", "weight", "--data", data, "--onnx", file]
    assert main([str(part) for part in ("swap", model, *options)]) == 0
