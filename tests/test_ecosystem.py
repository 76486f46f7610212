"""A swapped model goes where Keras's own go: summaries, clones, pipelines, SavedModel, LiteRT."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from helpers import assert_close

import kerasnorm

X = np.random.default_rng(0).normal(size=(60, 8, 8, 3)).astype("float32")


EACH = dict(
    zip(
        ("bn_1", "bn_1_end", "bn_1_short", "bn_2", "bn_2_end", "bn_2_short"),
        ("weight", "layer", "group", "cosine", "weight", "layer"),
        strict=True,
    )
)


@pytest.fixture(
    scope="module",
    params=[
        "each",
        "folded",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("weight", "layer", "group", "cosine")),
    ],
)
def model(request):
    """A residual network swapped to each target, or folded to plain layers behind that."""
    target = {"each": EACH, "folded": "weight"}.get(request.param, request.param)
    data = X if request.param in ("each", "cosine") else None
    swapped = kerasnorm.swap_norms(tiny_models.residual(), target, data).model
    return kerasnorm.fold_norms(swapped) if request.param == "folded" else swapped


def test_its_summary_lists_every_layer(model):
    lines = []
    model.summary(print_fn=lines.append)
    text = "\n".join(map(str, lines))
    assert all(layer.name[:15] in text for layer in model.layers)


def test_a_clone_answers_alike_with_the_same_weights(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(X[:4]), model(X[:4]))


def test_a_saved_model_of_tensorflow_answers_alike(model, tmp_path):
    import tensorflow as tf

    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")  # whose variables live as long as it does
    assert_close(saved.serve(X[:4]), model(X[:4]))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_litert_answers_alike(model, tmp_path):
    import tensorflow as tf

    path = tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(path))
    [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], [4, 8, 8, 3])
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken["index"], X[:4])
    interpreter.invoke()
    assert_close(interpreter.get_tensor(given["index"]), model(X[:4]))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_it_trains_from_a_pipeline_with_callbacks(policy, tmp_path):
    import tensorflow as tf

    pytest.importorskip("tensorboard", reason="Keras's callback needs it")
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        source = tiny_models.residual()
    finally:
        keras.config.set_dtype_policy("float32")
    swapped = kerasnorm.swap_norms(source, "weight").model
    labels = np.arange(60) % int(swapped.output_shape[-1])
    data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(20).prefetch(1)
    swapped.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", jit_compile=False
    )
    best = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path / "logs"),
        keras.callbacks.ModelCheckpoint(best, monitor="loss", save_best_only=True),
        keras.callbacks.EarlyStopping(monitor="loss"),
    ]
    history = swapped.fit(data, epochs=3, callbacks=callbacks, shuffle=False, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert list((tmp_path / "logs").rglob("events.*"))
    assert kerasnorm.load_model(best).count_params() == swapped.count_params()
