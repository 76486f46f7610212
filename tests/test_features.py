"""Every feature a Keras graph may have, beside BatchNorm: the verdict, and exactness."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import assert_exact, randomize

import kerasnorm
from kerasnorm import WeightNorm

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")

DENSE, CONV, AFFINE = "WeightNorm(Dense)", "WeightNorm(Conv2D)", "WeightNorm(Affine)"
# model: {site: what it becomes}
BECOMES = {
    "renorm": {"bn": DENSE},
    "synchronized": {"bn": DENSE},
    "subclasses_of_bn": {"named": DENSE, "doubled": "BatchNorm"},
    "quantized": {"bn_1": AFFINE, "bn_2": DENSE},
    "lora": {"bn_1": AFFINE, "bn_2": AFFINE, "bn_3": DENSE},
    "regularized": {"bn": DENSE},
    "with_attributes": {"bn": DENSE},
    "preprocessed": {"bn": DENSE},
    "categories": {"bn": DENSE},
    "text": {"bn": DENSE},
    "masked_lstm": {"bn": AFFINE},
    "a_mask_by_name": {"bn": AFFINE},
    "nested_outputs": {"bn_a": DENSE, "bn_b": DENSE},
    "arithmetic": {"bn_1": DENSE, "bn_2": AFFINE},
    "several_inputs": {"bn": DENSE},
    "output_with_many_readers": {"bn": DENSE},
    "three_deep": {
        "depth_1/depth_0/dense_bn/bn": DENSE, "depth_1/depth_0/bn": DENSE, "depth_1/bn": DENSE,
        "bn": DENSE,
    },
    "submodel_on_several_sizes": {"inner/bn": CONV},
    "one_d": {"bn": "WeightNorm(Conv1D)", "bn_2": AFFINE},
    "three_d": {"bn": "WeightNorm(Conv3D)", "bn_2": AFFINE},
    "batch_time_features": {"features": DENSE, "steps": AFFINE},
    "another_axis": {"rows": AFFINE, "columns": AFFINE},
    "mixed_policies": {"bn_1": AFFINE, "bn_2": AFFINE, "bn_3": DENSE},
    "frozen": {"bn": DENSE},
    "masked_submodel": {"inner/bn_in": DENSE, "bn": AFFINE},
    "one_input_of_two_models": {"inner/bn": AFFINE, "bn": AFFINE},
}  # fmt: skip


def rows(model, seed=0):
    rng = np.random.default_rng(seed)

    def of(tensor):
        shape = (16, *tensor.shape[1:])
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype == "string":
            return rng.choice(["a", "b", "the cat", "dog"], size=shape)
        if dtype == "bool":
            return rng.random(shape) > 0.3
        if "int" in dtype:
            return rng.integers(3, 8, shape)
        return rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(of, model.input)


def randomized(name):
    model = getattr(tiny_models, name)()
    if name not in ("categories", "text"):
        randomize(model, rows(model))
    return model


@pytest.mark.parametrize("name", BECOMES)
def test_verdict_and_exactness(name):
    source = randomized(name)
    before = [np.array(v) for v in source.variables]
    swap = kerasnorm.swap_norms(source, "weight")
    assert {site.name: site.becomes for site in swap.report.sites} == BECOMES[name]
    assert_exact(source, swap, rows(source, 1), 3e-2 if "mixed" in name else 1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(before, source.variables, strict=True))
    assert not {id(v) for v in source.variables} & {id(v) for v in swap.model.variables}
    text = name in ("categories", "text")
    assert any("not compared with its source" in note for note in swap.report.warnings) == text
    assert keras.tree.map_structure(lambda t: (t.shape, t.dtype), swap.model.output) == (
        keras.tree.map_structure(lambda t: (t.shape, t.dtype), source.output)
    )
    assert swap.model.output_names == source.output_names


# Keras 3.15 cannot load a model that has an input in common with a model in it.
@pytest.mark.parametrize("name", [name for name in BECOMES if name != "one_input_of_two_models"])
def test_the_swapped_model_can_be_saved(name, tmp_path):
    source = randomized(name)
    model = kerasnorm.swap_norms(source, "weight").model
    model.save(tmp_path / "model.keras")
    with keras.saving.custom_object_scope({"Doubled": tiny_models.tiny_code.Doubled}):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    x = rows(source)
    for a, b in zip(keras.tree.flatten(model(x)), keras.tree.flatten(loaded(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_quantized_and_lora_layers_are_copied_as_they_are():
    for name, layer in (
        ("quantized", "dense_int8"),
        ("quantized", "head_int8"),
        ("lora", "dense_lora"),
    ):
        source = randomized(name)
        copy = kerasnorm.swap_norms(source, "weight").model.get_layer(layer)
        original = source.get_layer(layer)
        assert copy.quantization_mode == original.quantization_mode
        assert copy.lora_enabled == original.lora_enabled
        for a, b in zip(original.variables, copy.variables, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.trainable == b.trainable


def test_regularizers_and_constraints():
    swap = kerasnorm.swap_norms(randomized("regularized"), "weight")
    new = swap.model.layers[-1]
    assert isinstance(new, WeightNorm)
    assert isinstance(new.layer.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(new.layer.kernel_constraint, keras.constraints.MaxNorm)
    assert any("regularizer of gamma is gone" in note for note in swap.report.notes)
    assert any("constraint of beta is gone" in note for note in swap.report.notes)


def test_attributes_of_the_model():
    source = randomized("with_attributes")
    swap = kerasnorm.swap_norms(source, "weight")
    assert swap.model.classes == ["a", "b", "c"]
    assert swap.model.settings["crop"] == (1, 2)
    np.testing.assert_array_equal(swap.model.settings["mean"], np.ones(3))
    assert swap.model.settings["mean"] is not source.settings["mean"]
    assert not hasattr(swap.model, "decoder")
    assert "model 'dense_bn': its attributes decoder are not carried over" in swap.report.notes


@pytest.mark.parametrize("target", ["weight", "layer", "group", "cosine"])
def test_masks_that_a_sequential_model_makes(target):
    source = tiny_models.masked_sequential()
    x = np.random.default_rng(0).normal(size=(40, 7, 4)).astype("float32")
    x[::2, 3:] = 0
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, target, x)
    assert isinstance(swap.model, keras.Sequential)
    assert not any(site.verdict == "refused" for site in swap.report.sites)
    if target == "weight":
        assert_exact(source, swap, x, 1e-4)


def test_outputs_keep_their_order():
    source = randomized("nested_outputs")
    model = kerasnorm.swap_norms(source, "weight").model
    answer = model(rows(source))
    assert list(answer) == list(source(rows(source)))
    assert [t.shape[-1] for t in keras.tree.flatten(answer)] == [
        t.shape[-1] for t in keras.tree.flatten(source(rows(source)))
    ]
