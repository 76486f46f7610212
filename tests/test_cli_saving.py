"""No command writes a `.keras` file that does not bring the model back."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm.cli import checked_save
from kerasnorm.cli.main import main
from kerasnorm.errors import SwapError


@keras.saving.register_keras_serializable("cli_saving")
class Net(keras.Model):
    """Makes its layers, BatchNorm among them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm, self.last = layers.Dense(4), layers.BatchNormalization(), None

    def call(self, x):
        return self.norm(self.dense(x))


@keras.saving.register_keras_serializable("cli_saving")
class MadeInConstructor(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x):
        return self.norm(self.dense(x))


@keras.saving.register_keras_serializable("cli_saving")
class MadeInBuild(layers.Layer):
    def build(self, shape):
        self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x):
        return self.norm(self.dense(x))


@keras.saving.register_keras_serializable("cli_saving")
class Given(layers.Layer):
    """Takes its layers from its configuration, as they are now."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        for layer in self.inner:
            if not layer.built:
                layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x

    def get_config(self):
        inner = [keras.saving.serialize_keras_object(layer) for layer in self.inner]
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = [keras.saving.deserialize_keras_object(item) for item in config.pop("inner")]
        return cls(inner, **config)


def net():
    model = Net(name="net")
    model(np.zeros((2, 3)))
    return model


def with_layer(layer):
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(2)(layer(x)), name="net")


REMADE = {
    "model": net,
    "layer": lambda: with_layer(MadeInConstructor(name="own")),
    "layer that builds": lambda: with_layer(MadeInBuild(name="own")),
}


@pytest.fixture
def saved(request, tmp_path):
    path = tmp_path / "model.keras"
    REMADE[request.param]().save(path)
    return path


def run(*argv) -> int:
    return main([str(argument) for argument in argv])


@pytest.mark.parametrize("saved", REMADE, indirect=True)
def test_no_file_that_makes_batch_norm_again(saved, tmp_path, capsys):
    files = [tmp_path / "out.keras", tmp_path / "out.json"]
    commands = [
        ("swap", saved, "--to", "weight", "--output", files[0], "--report", files[1]),
        ("fold", saved, files[0], "--report", files[1]),
    ]
    for command in commands:
        assert run(*command) == 1
        said = capsys.readouterr().err
        assert "A model must come back from its file as it is" in said
        assert "a class in the model makes BatchNorm when it is loaded" in said
        assert "write --onnx" in said
        assert not any(file.exists() for file in files)


@pytest.mark.parametrize("saved", REMADE, indirect=True)
def test_the_way_out_works(saved, tmp_path):
    assert run("swap", saved, "--to", "weight", "--onnx", tmp_path / "out.onnx") == 0
    source = kerasnorm.load_model(saved)
    swap = kerasnorm.swap_norms(source, "weight")
    (said,) = [note for note in swap.report.notes if "does not load" in note]
    assert "`save_weights`" in said
    swap.model.save_weights(tmp_path / "out.weights.h5")
    anew = kerasnorm.load_model(saved)
    for weight in anew.weights:  # as if its constructor had just been run
        weight.assign(keras.ops.ones_like(weight))
    anew = kerasnorm.swap_norms(anew, "weight").model
    anew.load_weights(tmp_path / "out.weights.h5")
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(anew(x), swap.model(x), atol=1e-6)


def test_a_class_whose_configuration_holds_its_layers(tmp_path):
    path, out, plain = (tmp_path / f"{name}.keras" for name in ("model", "out", "plain"))
    model = with_layer(Given([layers.Dense(4), layers.BatchNormalization()], name="own"))
    model.save(path)
    assert run("swap", path, "--to", "weight", "--output", out) == 0
    assert run("fold", path, plain) == 0
    x = np.random.default_rng(0).normal(size=(5, 3))
    for file in (out, plain):
        np.testing.assert_allclose(kerasnorm.load_model(file)(x), model(x), atol=1e-6)
    swap = kerasnorm.swap_norms(model, "weight")
    assert not [note for note in swap.report.notes if "does not load" in note]


@pytest.mark.parametrize("what", ["weights", "answers"])
def test_what_comes_back_is_compared(what, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    loads = checked_save.load

    def changed(file, **options):
        model = loads(file, **options)
        if what == "weights":
            model.weights[0].assign_add(keras.ops.ones_like(model.weights[0]))
            return model
        return keras.Model(model.inputs, [2.0 * output for output in model.outputs])

    monkeypatch.setattr(checked_save, "load", changed)
    assert run("swap", path, "--to", "weight", "--output", tmp_path / "out.keras") == 1
    said = {"weights": "a file with other weights", "answers": "a file that answers otherwise"}
    assert said[what] in capsys.readouterr().err
    assert not (tmp_path / "out.keras").exists()


def test_own_layers_that_nothing_was_replaced_in_are_not_named():
    model = with_layer(MadeInBuild(name="own"))
    for report in (
        kerasnorm.swap_norms(model, "weight", sites=[]).report,
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "weight").report,
    ):
        assert not [note for note in report.notes if "does not load" in note]


LORA = {
    "Dense": lambda: layers.Dense(4, name="own"),
    "EinsumDense": lambda: layers.EinsumDense("ab,bc->ac", 4, name="own"),
}


def with_lora(name):
    """A model in which LoRA has learned something."""
    x = keras.Input((3,))
    y = layers.Dense(2)(layers.BatchNormalization()(LORA[name]()(x)))
    model = keras.Model(x, y, name="net")
    own = model.get_layer("own")
    own.enable_lora(2)
    own.lora_kernel_b.assign(keras.ops.ones(own.lora_kernel_b.shape))
    return model


@pytest.mark.parametrize("name", LORA)
def test_a_file_keeps_what_lora_learned_in_the_kernel(name, tmp_path):
    path = tmp_path / "out.keras"
    swapped = kerasnorm.swap_norms(with_lora(name), "weight").model
    checked_save.save_checked(swapped, path, allow_custom_code=False)
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(kerasnorm.load_model(path)(x), swapped(x), atol=1e-6)


def test_a_file_that_lost_what_lora_learned(tmp_path, monkeypatch):
    model, loads = with_lora("Dense"), checked_save.load

    def lost(file, **options):
        loaded = loads(file, **options)
        loaded.get_layer("own").weights[0].assign(model.get_layer("own").weights[0])
        return loaded

    monkeypatch.setattr(checked_save, "load", lost)
    with pytest.raises(SwapError, match="a file with other weights"):
        checked_save.save_checked(model, tmp_path / "out.keras", allow_custom_code=False)
