"""WeightNorm: what it starts as, how it starts from data, and what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from keras import layers

import kerasnorm
from kerasnorm import (
    Affine,
    BatchNorm,
    CosineNorm,
    KerasNormError,
    LayerNorm,
    WeightNorm,
    data_init,
)
from kerasnorm.layers.functional_call import functional_call

FLOAT64 = pytest.param(
    "float64",
    marks=pytest.mark.skipif(
        keras.backend.backend() == "jax", reason="JAX has no float64 without jax_enable_x64"
    ),
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("trained", [False, True])
def test_wrapping_keeps_the_function(trained):
    dense = layers.Dense(4)
    x = normal(5, 3)
    if trained:
        dense(x)
        dense.set_weights([normal(3, 4, seed=1), normal(4, seed=2)])
    layer = WeightNorm(dense)
    wrapped = layer(x)
    np.testing.assert_allclose(wrapped, dense(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.g, np.linalg.norm(dense.kernel, axis=0), rtol=1e-6)


def test_a_zero_unit_starts_at_zero_and_learns():
    dense = layers.Dense(3)
    dense.build((None, 4))
    kernel = normal(4, 3)
    kernel[:, 1] = 0
    dense.kernel.assign(kernel)
    layer = WeightNorm(dense)
    x = normal(8, 4, seed=1)
    np.testing.assert_allclose(np.asarray(layer(x))[:, 1], 0)
    np.testing.assert_array_equal(np.asarray(dense.kernel)[:, [0, 2]], kernel[:, [0, 2]])
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
    target = x @ normal(4, 3, seed=2)
    model.fit(x, target, epochs=60, batch_size=8, verbose=0)
    error = np.square(np.asarray(layer(x)) - target).mean(0)
    assert error[1] < 0.2 * np.square(target[:, 1]).mean()


def test_the_zero_vector_has_a_finite_gradient():
    layer = WeightNorm(layers.Dense(3))
    x = normal(2, 4)
    layer(x)
    layer.layer.kernel.assign(np.zeros((4, 3)))
    y, dx, dw = output_and_gradients(layer, x, np.ones((2, 3), "float32"))
    assert all(np.isfinite(t).all() for t in (y, dx, *dw))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_kernels_of_any_size_are_normalized(scale):
    layer = WeightNorm(layers.Dense(3))
    layer.build((None, 4))
    layer.layer.kernel.assign(normal(4, 3) * np.float32(scale))
    w = np.asarray(layer.normalized_kernels()["g"])
    np.testing.assert_allclose(np.linalg.norm(w, axis=0), np.asarray(layer.g), rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.function")
def test_normalized_kernels_can_be_asked_for_in_any_graph():
    import tensorflow as tf

    layer = WeightNorm(layers.Dense(3))
    layer.build((None, 4))
    w = tf.function(lambda: layer.normalized_kernels()["g"])()
    np.testing.assert_allclose(w, layer.layer.kernel, rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    "wrap", [WeightNorm, lambda layer: CosineNorm(layer, rescale=True)], ids=["weight", "cosine"]
)
def test_a_layer_built_in_a_call_of_mixed_precision_rounds_nothing(wrap, policy):
    class Lazy(keras.Model):
        def __init__(self, inner):
            super().__init__(dtype=policy)
            self.inner = inner

        def build(self, input_shape):
            self.built = True  # and what is in it by its first call

        def call(self, x):
            return self.inner(x)

    dense = layers.Dense(4, dtype=policy)
    dense.build((None, 3))
    kernel = normal(3, 4)
    dense.kernel.assign(kernel)
    layer = wrap(dense)
    Lazy(layer)(normal(5, 3))
    np.testing.assert_array_equal(dense.kernel, kernel)
    assert layer.g.dtype == "float32"
    if wrap is WeightNorm:
        assert layer.normalized_kernels()["g"].dtype == "float32"
    start = np.linalg.norm(kernel, axis=0) if wrap is WeightNorm else np.full(4, 3**0.5)
    np.testing.assert_allclose(layer.g, start, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", FLOAT64])
@pytest.mark.parametrize("mean_only", [None, "layer"])
def test_gains_and_weights_have_the_dtype_of_the_kernel(mean_only, dtype):
    layer = WeightNorm(layers.Dense(3, dtype=dtype), mean_only=mean_only)
    layer.build((None, 4))
    assert layer.g.dtype == dtype
    assert keras.backend.standardize_dtype(layer.normalized_kernels()["g"].dtype) == dtype


def test_symbolic_calls_are_remembered_nowhere():
    layer = WeightNorm(layers.Dense(3), mean_only="layer")
    layer.build((None, 4))
    inputs = keras.Input((4,))
    layer.call(inputs)
    remembered = weakref.ref(inputs)
    del inputs
    gc.collect()
    assert remembered() is None


@pytest.mark.parametrize("how", ["assign", "set_weights", "a file"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.SeparableConv2D(3, 3, name="it"), (6, 6, 2)),
        (lambda: layers.LSTM(2, name="it"), (4, 3)),
    ],
)
def test_reset_gain_follows_weights_put_into_the_wrapped_layer(make, shape, how, tmp_path):
    x = normal(1, *shape)
    layer, bare = WeightNorm(make()), make()
    layer(x), bare(x)
    before = gains(layer)
    bare.set_weights([normal(*w.shape, seed=9) for w in bare.weights])
    if how == "assign":
        for old, new in zip(layer.layer.variables, bare.variables, strict=True):
            old.assign(new)
    elif how == "set_weights":
        layer.layer.set_weights(bare.get_weights())
    else:
        path = tmp_path / "bare.weights.h5"
        keras.Sequential([keras.Input(shape), bare]).save_weights(path)
        keras.Sequential([keras.Input(shape), layer.layer]).load_weights(path)
    assert all(np.array_equal(a, b) for a, b in zip(before, gains(layer), strict=True))
    assert not np.allclose(layer(x), bare(x), rtol=1e-4, atol=1e-5)
    layer.reset_gain()
    np.testing.assert_allclose(layer(x), bare(x), rtol=1e-4, atol=1e-5)


def gains(layer):
    return [np.array(v) for v in layer.variables if v.name in ("g", "g_depthwise", "g_recurrent")]


@pytest.mark.parametrize("make", [lambda: layers.Dense(2), lambda: layers.LSTM(2)])
def test_nothing_is_put_on_the_wrapped_layer(make):
    wrapped, alone = make(), make()
    for layer in (WeightNorm(wrapped), alone):
        layer(normal(2, 4, 3))
    assert vars(wrapped).keys() == vars(alone).keys()
    cells = [getattr(layer, "cell", layer) for layer in (wrapped, alone)]
    assert vars(cells[0]).keys() == vars(cells[1]).keys()


def swapped_twice():
    steps = [layers.Dense(4), layers.BatchNormalization(name="a")]
    steps += [layers.Dense(5), layers.BatchNormalization(name="b")]
    first = kerasnorm.swap_norms(
        keras.Sequential([keras.Input((3,)), *steps]), "weight", sites=["a"]
    )
    return first.model, kerasnorm.swap_norms(first.model, "weight").model


def recurrent():
    return keras.Sequential([keras.Input((4, 3)), WeightNorm(layers.LSTM(2))])


COPIES = {
    "swapped twice": swapped_twice,
    "deepcopy": lambda: (model := recurrent(), copy.deepcopy(model)),
    "deepcopy of the layer": lambda: (
        layer := recurrent().layers[0],
        keras.Sequential([keras.Input((4, 3)), copy.deepcopy(layer)]),
    ),
    "clone_model": lambda: (model := recurrent(), keras.models.clone_model(model)),
    "pickle": lambda: (model := recurrent(), pickle.loads(pickle.dumps(model))),
}


@pytest.mark.parametrize("kind", [*COPIES, "saved and loaded"])
def test_weights_loaded_into_a_copy_are_in_the_copy_alone(kind, tmp_path):
    if kind == "saved and loaded":
        source = recurrent()
        source.save(tmp_path / "model.keras")
        made = keras.saving.load_model(tmp_path / "model.keras")
    else:
        source, made = COPIES[kind]()
    before = source.get_weights()
    stored = [normal(*w.shape, seed=n) for n, w in enumerate(made.weights)]
    for variable, value in zip(made.weights, stored, strict=True):
        variable.assign(value)
    made.save_weights(tmp_path / "stored.weights.h5")
    for variable in made.weights:
        variable.assign(np.zeros(variable.shape))
    made.load_weights(tmp_path / "stored.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(made.get_weights(), stored, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), before, strict=True))
    for layer in made.layers:  # `set_weights` of the layer inside a wrapper, too
        inner = getattr(layer, "layer", layer)
        inner.set_weights([np.ones(w.shape) for w in inner.weights])
        assert all((np.asarray(w) == 1).all() for w in inner.weights)
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightNorm(layers.Dense(3, kernel_initializer="zeros")),
        lambda: WeightNorm(layers.Dense(3), mean_only="batch"),
        lambda: layers.RNN(WeightNorm(layers.LSTMCell(3)), return_sequences=True),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_a_model_without_an_input_is_built_by_the_first_step_of_fit(make, jit):
    model = keras.Sequential([make()])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
    model.fit(normal(8, 4, 3), normal(8, 4, 3, seed=1), verbose=0)
    for name in ("kernel", "g"):
        assert all(np.abs(w).max() > 0 for w in model.weights if w.name == name)


def test_a_weights_file_without_gains_is_refused(tmp_path):
    @keras.saving.register_keras_serializable("test")
    class Plain(layers.Wrapper):
        def call(self, x):
            return self.layer(x)

    def model(wrap):
        return keras.Sequential([keras.Input((3,)), wrap(layers.Dense(2), name="wrapper")])

    path = tmp_path / "bare.weights.h5"
    model(Plain).save_weights(path)
    wrapped = keras.Sequential([keras.Input((3,)), WeightNorm(layers.Dense(2), name="plain")])
    with pytest.raises(ValueError, match="must include its gain"):
        wrapped.load_weights(path)


def test_mean_only_batch_moves_a_mean_and_uses_it_at_inference():
    layer = WeightNorm(layers.Dense(3, activation="tanh"), mean_only="batch", momentum=0.0)
    x = normal(16, 4)
    trained = layer(x, training=True)
    np.testing.assert_allclose(layer(x), trained, rtol=1e-5, atol=1e-6)
    t = np.asarray(layer.pre_activation(x))
    np.testing.assert_allclose(layer.moving_mean, t.mean(0), rtol=1e-5, atol=1e-6)
    layer.trainable = False
    layer(x + 1, training=True)
    np.testing.assert_allclose(layer.moving_mean, t.mean(0), rtol=1e-5, atol=1e-6)


def test_mean_only_batch_leaves_masked_steps_out():
    layer = WeightNorm(layers.Dense(3), mean_only="batch", momentum=0.0)
    x, mask = normal(2, 5, 4), np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], "bool")
    layer(x, training=True, mask=mask)
    t = np.asarray(layer.pre_activation(x))
    np.testing.assert_allclose(layer.moving_mean, t[mask].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"mean_only": "layer"}], ids=str)
def test_a_kernel_that_is_plain_no_longer_is_refused(options):
    layer = WeightNorm(layers.Dense(3), **options)
    layer(normal(2, 4))
    with pytest.raises(NotImplementedError, match=r"'dense.*' is not quantized: .*fold_norms"):
        layer.layer.quantize("int8")
    layer.layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"is LoRA-enabled.*fold_norms"):
        layer(normal(2, 4))


def test_values_for_what_is_no_variable_are_refused():
    dense = layers.Dense(3)
    dense.build((None, 4))
    kernel = dense.kernel
    dense.enable_lora(2)
    assert dense.kernel is not kernel
    with pytest.raises(ValueError, match=r"1 of them for something.*fold_norms"):
        functional_call(dense, {id(dense.kernel): np.ones((4, 3))}, normal(2, 4))


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
@pytest.mark.parametrize("mean_only", [None, "batch", "layer"])
def test_pure_16_bit_policies_are_finite(policy, mean_only):
    layer = WeightNorm(layers.Dense(3, dtype=policy), mean_only=mean_only)
    x = normal(8, 4)
    y = np.asarray(keras.ops.cast(layer(x, training=True), "float32"))
    assert np.isfinite(y).all()
    # g / ‖v‖ is beyond what float16 holds
    layer.layer.kernel.assign(np.full((4, 3), 2e-4))
    layer.g.assign(np.full(3, 100.0))
    w = np.asarray(keras.ops.cast(layer.normalized_kernels()["g"], "float32"))
    np.testing.assert_allclose(w, 50, rtol=2e-2)


def test_the_norm_of_a_long_vector_of_16_bits_does_not_stall():
    layer = WeightNorm(layers.Dense(2, dtype="float16"))
    layer.build((None, 16384))
    length = np.linalg.norm(np.asarray(layer.layer.kernel).astype("float64"), axis=0)
    np.testing.assert_allclose(layer.g, length, rtol=1e-3)
    w = np.asarray(layer.normalized_kernels()["g"]).astype("float64")
    np.testing.assert_allclose(np.linalg.norm(w, axis=0), length, rtol=1e-3)


def test_a_mean_beyond_the_range_of_16_bits_drops_out():
    layer = WeightNorm(layers.Dense(2, dtype="float16"), mean_only="layer")
    layer.build((None, 4))
    layer.layer.kernel.assign(np.eye(4)[:, :2])
    layer.g.assign([1.0, 1.0])
    x = np.array([[300.5, 300.0, 0, 0]], "float16")
    np.testing.assert_allclose(np.asarray(layer(x)).astype("float32"), [[0.25, -0.25]], atol=1e-3)


def test_masks_reach_recurrent_layers():
    inputs = keras.Input((5, 3))
    layer = WeightNorm(layers.LSTM(4))
    model = keras.Model(inputs, layer(layers.Masking()(inputs)))
    x = normal(2, 5, 3)
    x[:, 3:] = 0
    np.testing.assert_allclose(model(x), layer(x[:, :3]), rtol=1e-5, atol=1e-6)


def test_embedding_passes_its_mask_on():
    layer = WeightNorm(layers.Embedding(5, 3, mask_zero=True))
    ids = np.array([[1, 2, 0]])
    np.testing.assert_array_equal(layer.compute_mask(ids), [[True, True, False]])


def test_a_stateful_layer_keeps_its_state():
    layer = WeightNorm(layers.GRU(3, stateful=True))
    x = normal(2, 4, 3)
    first, second = layer(x), layer(x)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-3
    layer.reset_state()
    np.testing.assert_allclose(layer(x), first, rtol=1e-6)


def test_both_directions_take_and_keep_states():
    x, states = normal(2, 4, 3), [normal(2, 3, seed=i) for i in range(4)]
    layer = layers.Bidirectional(WeightNorm(layers.LSTM(3)))
    bare = layers.Bidirectional(layers.LSTM(3))
    layer(x), bare(x)
    for ours, theirs in (
        (layer.forward_layer, bare.forward_layer),
        (layer.backward_layer, bare.backward_layer),
    ):
        theirs.set_weights(ours.layer.get_weights())
    np.testing.assert_allclose(
        layer(x, initial_state=states), bare(x, initial_state=states), rtol=1e-5, atol=1e-6
    )
    stateful = layers.Bidirectional(WeightNorm(layers.GRU(3, stateful=True)))
    first, second = stateful(x), stateful(x)
    assert len(stateful.states) == 2
    stateful.reset_state()
    np.testing.assert_allclose(stateful(x), first, rtol=1e-6)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-3


def test_dropout_inside_a_wrapped_layer_is_drawn_anew():
    layer = WeightNorm(layers.LSTM(16, dropout=0.5))
    x = normal(2, 4, 8)
    assert not np.array_equal(layer(x, training=True), layer(x, training=True))
    np.testing.assert_array_equal(layer(x), layer(x))


def signs(make, reload=None):
    """A nested model with a WeightNorm whose v are single numbers, some −1, and that layer."""
    inner = keras.Sequential([keras.Input((3,)), WeightNorm(make(), name="signs")], name="inner")
    inner.get_layer("signs").layer.kernel.assign([1.0, -1.0, 1.0])
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), inner])
    model = model if reload is None else reload(model)
    return model, model.get_layer("inner").get_layer("signs")


def toggle(part):
    part.trainable = False
    part.trainable = True


SIGNS = {
    "Affine": Affine,
    "EinsumDense": lambda: layers.EinsumDense("ab,b->ab", (3,), bias_axes="b"),
}
TOGGLES = {
    "nothing": lambda model, layer: None,
    "the model": lambda model, layer: toggle(model),
    "a nested model": lambda model, layer: toggle(model.get_layer("inner")),
    "the wrapper": lambda model, layer: toggle(layer),
    "the wrapped layer": lambda model, layer: toggle(layer.layer),
    "every variable": lambda model, layer: [toggle(v) for v in model.variables],
}
RELOADS = {
    "clone_model": lambda model: with_weights(keras.models.clone_model(model), model),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "swapped": lambda model: kerasnorm.swap_norms(model, "weight").model,
}


def with_weights(model, source):
    model.set_weights(source.get_weights())
    return model


@pytest.mark.parametrize(
    ("kind", "toggled", "reload"),
    [
        *[(kind, toggled, "as made") for kind in SIGNS for toggled in TOGGLES],
        *[("Affine", t, r) for t in ("the model", "the wrapped layer") for r in RELOADS],
    ],
)
def test_the_signs_of_single_weights_stay_and_their_gains_train(kind, toggled, reload):
    model, layer = signs(SIGNS[kind], RELOADS.get(reload))
    TOGGLES[toggled](model, layer)
    for part in (model, model.get_layer("inner"), layer):
        for trained in (part.trainable_variables, part.trainable_weights):
            assert [v.path.split("/")[-1] for v in trained][-2:] == ["g", "bias"]
            assert not any(v is layer.layer.kernel for v in trained)
        assert any(v is layer.layer.kernel for v in part.non_trainable_variables)
    # weight decay is what would move a v without a gradient
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    model.compile(optimizer, "mse", run_eagerly=True)
    before = np.array(layer.g)
    model.train_on_batch(normal(8, 3), normal(8, 3, seed=1))
    np.testing.assert_array_equal(layer.layer.kernel, [1.0, -1.0, 1.0])
    assert (np.asarray(layer.g) != before).all()


def test_the_flag_is_down_as_soon_as_trainable_is_set():
    model, layer = signs(Affine)
    for part in (layer, model):
        toggle(part)
        assert layer.layer.bias.trainable
        assert not layer.layer.kernel.trainable


def test_what_does_not_train_stays_so_when_trainable_is_set():
    """Moving statistics and states are no weights to train, in whatever layer."""
    parts = [WeightNorm(layers.Dense(3), mean_only="batch"), BatchNorm(renorm=True)]
    parts += [CosineNorm(layers.Dense(3), rescale=True), LayerNorm()]
    model = keras.Sequential([keras.Input((3,)), *parts])
    names = [v.path for v in model.trainable_variables]
    assert not [name for name in names if "moving" in name or "renorm" in name]
    for part in (model, *parts, parts[0].layer, parts[2].layer):
        toggle(part)
        assert [v.path for v in model.trainable_variables] == names


def test_a_frozen_layer_leaves_its_gain_trainable_and_a_frozen_wrapper_does_not():
    layer = WeightNorm(layers.Dense(3, trainable=False))
    layer.build((None, 4))
    assert [w.path.split("/")[-1] for w in layer.trainable_weights] == ["g"]
    layer.trainable = False
    assert not layer.trainable_weights


def test_a_kernel_constraint_acts_on_the_direction():
    dense = layers.Dense(3, kernel_constraint="non_neg")
    layer = WeightNorm(dense)
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    model.fit(normal(8, 4), normal(8, 3, seed=1), epochs=2, verbose=0)
    assert (np.asarray(dense.kernel) >= 0).all()


def test_integer_inputs_do_what_the_wrapped_layer_does():
    layer = WeightNorm(layers.Dense(3))
    x = np.arange(8).reshape(2, 4)
    np.testing.assert_allclose(layer(x), layer.layer(x), rtol=1e-5)


def wide_model():
    inputs = keras.Input((6, 6, 3))
    x = WeightNorm(layers.Conv2D(4, 3, activation="relu"), name="conv")(inputs)
    x = WeightNorm(layers.DepthwiseConv2D(3, depth_multiplier=2), name="depthwise")(x)
    x = layers.TimeDistributed(WeightNorm(layers.Dense(4), name="steps"))(layers.ReLU()(x))
    shared = WeightNorm(layers.Dense(4), name="shared")
    x = shared(shared(x))
    heads = layers.EinsumDense("abcd,dfe->abef", (None, 5, 4), bias_axes="ef")
    return keras.Model(inputs, WeightNorm(heads, name="heads")(x))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_data_init_standardizes_every_pre_activation(length):
    model = wide_model()
    for name in ("conv", "depthwise", "shared", "heads"):
        layer = model.get_layer(name)
        layer.layer.kernel.assign(layer.layer.kernel * length)
    x = normal(64, 6, 6, 3) * 5 + 3
    assert data_init(model, x) == ["conv", "depthwise", "steps", "shared", "heads"]
    convolution = model.get_layer("conv")
    t = np.asarray(convolution.pre_activation(x)) + np.asarray(convolution.layer.bias)
    np.testing.assert_allclose(t.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(t.var((0, 1, 2)), 1, rtol=1e-4)
    y = np.asarray(model(x))  # linear, so its pre-activations are its outputs
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1)), 1, rtol=1e-4)


def test_data_init_with_a_mean_of_the_batch_goes_into_the_moving_mean():
    layer = WeightNorm(layers.Dense(4), mean_only="batch")
    model = keras.Sequential([keras.Input((3,)), layer])
    x = normal(64, 3) + 2
    data_init(model, x)
    np.testing.assert_allclose(np.asarray(model(x)).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(layer.layer.bias), 0)
    np.testing.assert_allclose(np.asarray(model(x)).var(0), 1, rtol=1e-4)


def test_data_init_leaves_masked_steps_out():
    inputs = keras.Input((6, 3))
    layer = WeightNorm(layers.Dense(4), name="wn")
    model = keras.Model(inputs, layer(layers.Masking()(inputs)))
    x = normal(64, 6, 3) + 2
    x[:, 4:] = 0
    data_init(model, x)
    y = np.asarray(layer(x[:, :4]))
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1)), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: layers.Conv2D(4, 3), [(8, 8, 3), (6, 6, 3)]),
        (lambda: layers.Dense(4), [(3,), (5, 3)]),
    ],
)
def test_data_init_of_a_layer_shared_over_several_sizes(make, shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    shared = WeightNorm(make())
    model = keras.Model(inputs, [shared(t) for t in inputs])
    batch = [normal(32, *shape, seed=i) + i for i, shape in enumerate(shapes)]
    data_init(model, batch)
    y = np.concatenate([np.asarray(t).reshape(-1, 4) for t in model(batch)])
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(0), 1, rtol=1e-4)


MASKED = {
    # a mask over (batch, time) counts where time stays what it was
    "Dense": (lambda: layers.Dense(3), (5, 4), True),
    "Conv1D same": (lambda: layers.Conv1D(3, 3, padding="same"), (5, 4), True),
    "Conv1D causal": (lambda: layers.Conv1D(3, 3, padding="causal"), (5, 4), True),
    "Conv1D valid": (lambda: layers.Conv1D(3, 3), (5, 4), False),
    "Conv1D strided": (lambda: layers.Conv1D(3, 3, strides=2, padding="same"), (5, 4), False),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (5, 3)), (5, 4), True),
    "einsum, moved": (lambda: layers.EinsumDense("abc,cd->adb", (3, 5)), (5, 4), False),
}


# the wrapped convolutions and einsums pass no mask on, of which Keras warns
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize("name", MASKED)
def test_mean_only_batch_uses_a_mask_where_it_fits_the_output(name):
    make, shape, fits = MASKED[name]
    layer = WeightNorm(make(), mean_only="batch", momentum=0.0)
    x = normal(3, *shape)
    mask = np.arange(5)[None] < np.array([[2], [3], [5]])
    layer(x, training=True, mask=mask)
    t = np.asarray(layer.pre_activation(x))
    t = np.moveaxis(t, 1, 2) if name == "einsum, moved" else t
    expected = t[mask] if fits else t.reshape(-1, 3)
    np.testing.assert_allclose(layer.moving_mean, expected.mean(0), rtol=1e-5, atol=1e-6)


def test_data_init_without_a_bias_sets_the_variance_only():
    model = keras.Sequential([keras.Input((3,)), WeightNorm(layers.Dense(4, use_bias=False))])
    x = normal(64, 3) + 2
    data_init(model, x)
    np.testing.assert_allclose(np.asarray(model(x)).var(0), 1, rtol=1e-4)


def test_data_init_warns_of_units_that_never_vary():
    model = keras.Sequential([keras.Input((3,)), WeightNorm(layers.Dense(4), name="wn")])
    with pytest.warns(UserWarning, match="4 unit.s. of WeightNorm 'wn' have the same"):
        data_init(model, np.ones((8, 3), "float32"))
    assert np.isfinite(np.asarray(model.get_weights()[0])).all()


def test_data_init_refusals():
    with pytest.raises(KerasNormError, match=r"A model must be given. Received: str"):
        data_init("model.keras", np.ones((8, 3)))
    bare = keras.Sequential([keras.Input((3,)), layers.Dense(4)], name="bare")
    with pytest.raises(KerasNormError, match="model 'bare': data_init needs a model that calls"):
        data_init(bare, np.ones((8, 3)))
    model = keras.Sequential([keras.Input((3,)), WeightNorm(layers.Dense(4), name="wn")])
    finite = (
        "^model '.*', layer 'wn': The pre-activations must be finite.*scale its inputs to about 1.$"
    )
    with pytest.raises(KerasNormError, match=finite) as caught:
        data_init(model, np.full((8, 3), np.inf, "float32"))
    assert caught.value.layer == "wn"
    layer = WeightNorm(layers.Dense(4), mean_only="layer", name="wn")
    model = keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(KerasNormError, match="Received: mean_only='layer'"):
        data_init(model, normal(8, 3))
    heads = layers.EinsumDense("abc,cd->abd", (2, 3), bias_axes="bd")
    model = keras.Sequential([keras.Input((2, 4)), WeightNorm(heads)])
    with pytest.raises(KerasNormError, match="one value per output unit"):
        data_init(model, normal(8, 2, 4))


class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class Standardized(layers.Conv1D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


class Renamed(layers.Dense):
    pass


def test_a_subclass_with_a_call_of_its_own_keeps_it_or_is_refused():
    layer = WeightNorm(Doubled(3))
    x = normal(2, 4)
    np.testing.assert_allclose(layer(x), layer.layer(x), rtol=1e-5)
    model = keras.Sequential([keras.Input((4,)), WeightNorm(Doubled(3), name="wn")])
    with pytest.raises(KerasNormError, match="would not use the `call` of Doubled"):
        data_init(model, x)
    assert WeightNorm(Renamed(3), mean_only="batch")(x).shape == (2, 3)


REFUSALS = [
    (lambda: WeightNorm(Doubled(3), mean_only="batch"), "would not use the `call` of Doubled"),
    (
        lambda: WeightNorm(Standardized(3, 3), mean_only="layer"),
        "would not use the `convolution_op` of Standardized",
    ),
    (lambda: WeightNorm(layers.ReLU()), "WeightNorm needs a layer with a kernel to normalize"),
    (lambda: WeightNorm(layers.LayerNormalization()), "Received: <LayerNormalization"),
    (lambda: WeightNorm(layers.Dense(3), mean_only="unit"), "must be None, 'batch' or 'layer'"),
    (lambda: WeightNorm(layers.LSTM(3), mean_only="layer"), "needs a linear layer, with one"),
    (lambda: WeightNorm(layers.LSTMCell(3, dropout=0.1)), "cannot wrap a recurrent cell with"),
    (lambda: WeightNorm(layers.Dense(3)).build((None, None)), "must know the size of axis 1"),
    (
        lambda: WeightNorm(layers.Conv2D(3, 3, data_format="channels_first")).build(
            (None, None, 5, 5)
        ),
        "must know the size of axis 1",
    ),
    (lambda: Affine(axis=2).build((None, 3)), "`axis` must name one of the 2 axes of the input"),
    (lambda: Affine().build((None, None)), "the size of axis -1 must be known"),
]


@pytest.mark.parametrize(("ask", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_refusals_say_why(ask, text):
    with pytest.raises(ValueError, match=text):
        ask()


def test_public_names():
    assert kerasnorm.data_init is data_init


def test_a_diagonal_layer_keeps_its_gains_to_the_last_bit():
    layer = WeightNorm(Affine())
    layer.build((None, 200))
    rng = np.random.default_rng(0)
    signs = np.where(rng.random(200) < 0.5, -1.0, 1.0)
    gain = rng.normal(size=200).astype("float32")
    layer.layer.kernel.assign(signs * rng.uniform(1e-3, 1e3, 200))
    layer.g.assign(gain)
    np.testing.assert_array_equal(layer.normalized_kernels()["g"], signs * gain)


class _Calls(keras.layers.Layer):
    """A layer whose first call builds the layer in it."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize("outer", ["float32", FLOAT64, "mixed_float16"])
@pytest.mark.parametrize(
    "policy", [FLOAT64, "float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
)
@pytest.mark.parametrize("wrap", [WeightNorm, lambda layer: CosineNorm(layer, rescale=True)])
def test_gains_have_the_dtype_of_the_kernel_wherever_they_are_made(wrap, policy, outer):
    wrapper = wrap(keras.layers.Dense(3, dtype=policy))
    _Calls(wrapper, dtype=outer)(np.ones((2, 4), "float32"))
    assert wrapper.g.dtype == wrapper.layer.kernel.dtype == wrapper.variable_dtype
    assert keras.backend.standardize_dtype(wrapper.g.value.dtype) == wrapper.variable_dtype


class InTurn(keras.Model):
    """Calls another layer in each run."""

    def __init__(self, paths):
        super().__init__()
        self.paths = [[WeightNorm(layers.Dense(4)) for _ in range(n)] for n in paths]
        self.runs = 0

    def build(self, shape):
        for layer in (layer for path in self.paths for layer in path):
            layer.build((None, 4))

    def call(self, x):
        path = self.paths[self.runs % len(self.paths)]
        self.runs += 1
        for layer in path:
            x = layer(x)
        return x


@pytest.mark.parametrize("paths", [(1, 1), (2, 0), (0, 1, 1)])
def test_data_init_of_a_model_that_calls_other_layers_in_each_run(paths):
    model = InTurn(paths)
    model.build((None, 4))
    model.runs = 0
    with pytest.raises(
        KerasNormError, match=r"data_init (runs a model several|needs a model that)"
    ):
        data_init(model, np.eye(4, dtype="float32"))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("to", ["weight", "cosine"])
def test_a_model_with_it_can_be_quantized(to, mode):
    """It stays in floating point, as layers do that Keras cannot quantize, and says so."""
    stack = [layers.Dense(16, name="first"), layers.BatchNormalization(), layers.ReLU()]
    source = keras.Sequential([keras.Input((8,)), *stack, layers.Dense(16), layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    model = kerasnorm.swap_norms(source, to, x, sites=lambda site: True).model
    wrapper = model.layers[0]
    before, hidden = np.array(model(x)), np.array(wrapper(x))
    said = r"'first' is not quantized: (Weight|Cosine)Norm computes with its kernel"
    with pytest.warns(UserWarning, match=said):
        model.quantize(mode)
    assert wrapper.layer.quantization_mode is None
    assert model.layers[-1].quantization_mode == mode
    np.testing.assert_array_equal(wrapper(x), hidden)
    assert np.abs(model(x) - before).max() < 0.5 * before.std()
    if to == "weight":  # what it says to try
        folded = kerasnorm.fold_norms(kerasnorm.swap_norms(source, to).model)
        folded.quantize(mode)
        assert all(la.quantization_mode for la in folded.layers if isinstance(la, layers.Dense))
        assert np.abs(folded(x) - before).max() < 0.5 * before.std()
