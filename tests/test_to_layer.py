"""The swap to layer norm: what stored statistics say, and what data adds."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import every_site, randomize
from keras import layers

import kerasnorm
from kerasnorm import Affine, LayerNorm, SwapError
from kerasnorm.fit.sampling import Sampling
from kerasnorm.math.r_squared import r_squared

pytestmark = pytest.mark.usefixtures("closed_form")

BN = layers.BatchNormalization


def images(rows=40, seed=0):
    """Blocks of colour, so that samples differ and neighbouring pixels agree."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(rows, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return (coarse + 0.3 * rng.normal(size=(rows, 8, 8, 3))).astype("float32")


def randomized(make, x):
    keras.utils.set_random_seed(0)
    model = make()
    randomize(model, x)
    for layer in model.layers:  # gains near 1, as trained ones are
        if isinstance(layer, BN):
            layer.gamma.assign(1.0 + 0.2 * layer.gamma)
    return model


def statistics(norm):
    return [
        np.asarray(v, "float64")
        for v in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    ]


def test_behind_a_linear_layer_all_of_batch_norm_is_folded_into_it():
    source = randomized(tiny_models.conv_bn_relu, images())
    model = kerasnorm.swap_norms(source, "layer", damping=0).model
    gamma, beta, mean, variance = statistics(source.get_layer("bn"))
    conv, norm = model.get_layer("conv"), model.get_layer("bn")
    signs = np.sign(norm.gamma)
    scale, beta = signs * gamma / np.sqrt(variance + 1e-3), signs * beta
    kernel = np.asarray(source.get_layer("conv").kernel, "float64")
    np.testing.assert_allclose(conv.kernel, kernel * scale, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(conv.bias, beta - mean * scale, rtol=1e-5, atol=1e-6)
    center = beta.mean()
    spread = np.sqrt((beta**2 + scale**2 * variance).mean() - center**2)
    np.testing.assert_allclose(norm.gamma, signs * spread * np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(norm.beta, signs * center, rtol=1e-5, atol=1e-7)
    assert isinstance(norm, LayerNorm)
    assert norm.axis == "sample"
    assert norm.epsilon == pytest.approx(1e-5 * spread**2, rel=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_epsilon_is_a_share_of_the_variance_that_is_normalized(size, damping):
    """Whatever the size of the activations, the same share of a sample's variance is added."""
    source = on_rows(tiny_models.dense_bn)
    norm = source.get_layer("bn")
    for weight in (norm.gamma, norm.beta):
        weight.assign(size * weight)
    gamma, beta, _, variance = statistics(norm)
    layer = kerasnorm.swap_norms(source, "layer", damping=damping).model.get_layer("bn")
    scale, beta = gamma / np.sqrt(variance + 1e-3), np.sign(layer.gamma) * beta
    spread = np.sqrt((beta**2 + scale**2 * variance).mean() - beta.mean() ** 2)
    assert layer.epsilon == pytest.approx((damping or 1e-5) * spread**2, rel=1e-5)


@pytest.mark.parametrize("make", [tiny_models.dense_bn, tiny_models.bn_after_activation])
def test_with_much_damping_only_the_mean_of_each_sample_is_lost(make):
    source = on_rows(make)
    norm = source.get_layer("bn")
    x = np.random.default_rng(1).normal(size=(50, 5)).astype("float32")
    model = kerasnorm.swap_norms(source, "layer", damping=1e6).model
    own, swapped = (keras.Model(m.input, m.get_layer("bn").output)(x) for m in (source, model))
    signs = np.sign(model.get_layer("bn").gamma)
    lost = np.mean(signs * (own - norm.beta), -1, keepdims=True)
    expected = own - signs * lost
    np.testing.assert_allclose(swapped, expected, rtol=1e-4, atol=1e-4)


def test_epsilon_of_an_activation_that_never_varies_is_that_of_keras():
    source = on_rows(tiny_models.dense_bn)
    norm = source.get_layer("bn")
    norm.gamma.assign(0 * norm.gamma)
    norm.beta.assign(0 * norm.beta)
    layer = kerasnorm.swap_norms(source, "layer").model.get_layer("bn")
    assert layer.epsilon == keras.config.epsilon()


def on_rows(make):
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    return randomized(make, x)


def test_elsewhere_an_affine_takes_the_map():
    source = on_rows(tiny_models.bn_after_activation)
    swap = kerasnorm.swap_norms(source, "layer", damping=0)
    gamma, beta, mean, variance = statistics(source.get_layer("bn"))
    affine, norm = swap.model.get_layer("bn_affine"), swap.model.get_layer("bn")
    assert isinstance(affine, Affine)
    signs = np.sign(norm.gamma)
    scale, beta = signs * gamma / np.sqrt(variance + 1e-3), signs * beta
    np.testing.assert_allclose(affine.kernel, scale, rtol=1e-5)
    np.testing.assert_allclose(affine.bias, beta - mean * scale, rtol=1e-4, atol=1e-6)
    spread = np.sqrt((beta**2 + scale**2 * variance).mean() - beta.mean() ** 2)
    np.testing.assert_allclose(norm.gamma, signs * spread * np.sqrt(1 + 1e-5), rtol=2e-6)
    np.testing.assert_allclose(norm.beta, signs * beta.mean(), rtol=1e-5, atol=1e-7)
    assert norm.axis == -1
    (site,) = swap.report.sites
    assert (site.rule, site.becomes) == ("to_layer 2", "Affine, LayerNorm")


def test_both_layers_stand_in_a_sequential_model_and_keep_clear_of_names():
    def make():
        return keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(4, activation="relu", name="bn_affine"),
                BN(name="bn"),
                BN(name="bn_2"),
                layers.Dense(2, name="head"),
            ]
        )

    source = on_rows(make)
    swap = kerasnorm.swap_norms(source, "layer")
    names = [layer.name for layer in swap.model.layers]
    assert names == ["bn_affine", "bn_affine_", "bn", "bn_2_affine", "bn_2", "head"]
    assert swap.report.layers["bn"] == "bn"
    assert swap.compare().keys() >= {"bn", "bn_2", "output 0"}


def test_the_penalty_on_outputs_is_on_the_last_of_both_layers():
    def make():
        inputs = keras.Input((5,))
        norm = BN(name="bn")
        norm.activity_regularizer = keras.regularizers.L2(0.1)
        return keras.Model(inputs, norm(layers.ReLU()(layers.Dense(4)(inputs))))

    model = kerasnorm.swap_norms(on_rows(make), "layer").model
    assert model.get_layer("bn_affine").activity_regularizer is None
    assert model.get_layer("bn").activity_regularizer is not None


def test_batches_are_skipped_only_where_each_holds_a_sample_out():
    sampling = Sampling(20, np.random.default_rng(0))
    assert sampling.step((4, 512, 512, 3), 820) == 1
    assert sampling.step((32, 512, 512, 3), 820) == 20
    assert sampling.step((32, 8, 8, 3), 820) == 1
    assert Sampling(4, np.random.default_rng(0)).step((8, 512, 512, 3), 820) == 1


def test_a_batch_norm_called_by_keyword():
    def make():
        inputs = keras.Input((5,))
        x = layers.ReLU()(layers.Dense(4)(inputs))
        return keras.Model(inputs, BN(name="bn")(inputs=x))

    swap = kerasnorm.swap_norms(make(), "layer")
    assert [type(layer) for layer in swap.model.layers[-2:]] == [Affine, LayerNorm]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_small_batches_of_large_maps(batch_size):
    inputs = keras.Input((128, 128, 1))
    source = keras.Model(inputs, BN(name="bn")(layers.Conv2D(2, 3)(inputs)))
    x = np.random.default_rng(0).normal(size=(20, 128, 128, 1)).astype("float32")
    swap = kerasnorm.swap_norms(source, "layer", x, batch_size=batch_size)
    assert swap.report.sites[0].fit > 0.9


def test_code_takes_one_layer_so_the_raw_activation_is_normalized():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, activation="relu")
            self.norm = BN(name="bn")

        def call(self, x):
            return self.norm(self.dense(x))

    source = Net()
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    source(x)
    norm = source.norm
    for variable in norm.variables:
        variable.assign(1.0 + np.random.default_rng(1).uniform(size=variable.shape))
    gamma, beta, mean, variance = statistics(norm)
    scale = gamma / np.sqrt(variance + 1e-3)
    center = mean.mean()
    spread = np.sqrt((variance + mean**2).mean() - center**2)
    swapped = kerasnorm.swap_norms(source, "layer", damping=0).model.norm
    np.testing.assert_allclose(swapped.gamma, scale * spread, rtol=1e-5)
    np.testing.assert_allclose(swapped.beta, beta + scale * (center - mean), rtol=1e-4, atol=1e-6)


def single_channel():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, BN(name="bn")(layers.Conv2D(1, 3, name="conv")(inputs)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(tiny_models.bn_on_input, "an input of the model"), (single_channel, "a single channel")],
)
def test_what_no_layer_norm_can_stand_for_becomes_an_affine(make, reason):
    source = make()
    x = np.random.default_rng(0).normal(size=(16, *source.input_shape[1:])).astype("float32")
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "layer")
    (site,) = swap.report.sites
    assert (site.verdict, site.becomes) == ("exact", "Affine")
    assert reason in site.reason
    assert isinstance(swap.model.get_layer("bn"), Affine)
    np.testing.assert_allclose(source(x), swap.model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "axis"),
    [
        ("Dense", -1),
        ("Conv1D causal", -1),
        ("Dense on a sequence", -1),
        ("Conv2D", "sample"),
        ("SeparableConv2D", "sample"),
        ("Conv3D", "sample"),
    ],
)
def test_steps_of_a_sequence_do_not_see_each_other(kind, axis):
    swap = kerasnorm.swap_norms(tiny_models.behind_linear(kind), "layer")
    assert swap.model.get_layer("bn").axis == axis


def test_the_scale_of_what_a_layer_norm_reads_does_not_matter():
    """Pure: nothing of BatchNorm's own scale is left in the way."""
    source = randomized(tiny_models.conv_bn_relu, images())
    model = kerasnorm.swap_norms(source, "layer", images(seed=1), damping=0).model
    norm, conv = model.get_layer("bn"), model.get_layer("conv")
    y = conv(images(seed=2))
    expected = np.asarray(norm(y))
    assert np.abs(np.asarray(norm(10.0 * y)) - expected).max() <= 1e-3 * expected.std()


def two_convolutions():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU()(BN(name="bn")(x))
    x = layers.SeparableConv2D(10, 3, padding="same", name="separable")(x)
    x = layers.ReLU()(BN(name="bn_2")(x))
    x = layers.Conv2D(6, 1, activation="relu", name="between")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def distance(source, model, x):
    expected = np.asarray(source(x))
    return np.abs(expected - np.asarray(model(x))).mean() / expected.std()


def test_data_brings_it_closer():
    source = randomized(two_convolutions, images())
    test = images(rows=64, seed=9)
    bare = kerasnorm.swap_norms(source, "layer", sites=every_site)
    fitted = kerasnorm.swap_norms(source, "layer", images(rows=200, seed=1), sites=every_site)
    assert {s.verdict for s in bare.report.sites} == {"matched"}
    assert {s.verdict for s in fitted.report.sites} == {"calibrated"}
    assert distance(source, fitted.model, test) < 0.7 * distance(source, bare.model, test)


def test_linear_layers_in_between_are_refitted():
    source = randomized(two_convolutions, images())
    model = kerasnorm.swap_norms(source, "layer", images(rows=200, seed=1)).model
    for name in ("between", "head"):
        old, new = (np.asarray(m.get_layer(name).kernel) for m in (source, model))
        assert np.abs(old - new).max() > 1e-3 * np.abs(old).max(), name


def activations(model, name, x):
    return np.asarray(keras.Model(model.inputs[0], model.get_layer(name).output)(x))


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_the_reported_fit_is_that_of_the_activations(target):
    source = randomized(two_convolutions, images())
    data = images(rows=300, seed=1)
    swap = kerasnorm.swap_norms(source, target, data, sites=every_site)
    # of every ten samples, one chooses among the fits
    held_out = data[4::10]
    for site in swap.report.sites:
        expected = activations(source, site.name, held_out)
        place = swap.report.layers[site.name]
        received = activations(swap.model, place, held_out)
        channels = expected.shape[-1]
        own = r_squared(expected.reshape(-1, channels), received.reshape(-1, channels))
        # the report's are of sampled positions
        assert site.fit == pytest.approx(own, abs=0.03)


def test_same_seed_same_weights():
    source = randomized(two_convolutions, images())
    data = images(rows=400, seed=1)  # of fewer, every position would be taken
    first, again, other = (
        kerasnorm.swap_norms(source, "layer", data, seed=seed).model.get_weights()
        for seed in (3, 3, 4)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_the_budget_changes_nothing():
    source = randomized(two_convolutions, images())
    data = images(rows=100, seed=1)
    inside, outside = (
        kerasnorm.swap_norms(source, "layer", data, memory_budget=budget).model.get_weights()
        for budget in (2**30, 0)
    )
    assert all(np.array_equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_every_form_of_data_gives_the_same():
    import tensorflow as tf

    source = randomized(two_convolutions, images())
    data = images(rows=96, seed=1)
    dataset = tf.data.Dataset.from_tensor_slices((data, np.zeros(96))).batch(32)
    forms = (data, dataset, iter([data[:32], data[32:64], data[64:]]))
    weights = [kerasnorm.swap_norms(source, "layer", form).model.get_weights() for form in forms]
    for other in weights[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(weights[0], other, strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 8, 8, 3)), "at least 10 samples. Received 0"),
        (np.zeros((1, 8, 8, 3)), "at least 10 samples. Received 1"),
        (np.full((20, 8, 8, 3), np.nan), "must be finite"),
        (np.zeros((20, 8, 8)), "must have the shape of the model's input"),
        (np.zeros((20, 9, 8, 3)), "must have the shape of the model's input"),
        ((np.zeros((20, 8, 8, 3)), np.zeros(20)), "an array for each input of the model, 1 in all"),
        (7, "arrays or an iterable of batches"),
    ],
)
def test_wrong_data(data, message):
    with pytest.raises(kerasnorm.KerasNormError, match=message):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "layer", data)


@pytest.mark.parametrize("damping", [0.0, 0.5, 4.0])
def test_a_fit_divides_by_what_the_layer_norm_divides_by(damping, closed_form):
    source = randomized(tiny_models.conv_bn_relu, images())
    swap = kerasnorm.swap_norms(source, "layer", images(400, seed=1), damping=damping)
    x = images(200, seed=2)
    # gain and bias of least squares on samples that were not fitted to are about the same
    y = np.asarray(keras.Model(source.input, source.get_layer("bn").output)(x)).reshape(-1, 6)
    z = np.asarray(keras.Model(swap.model.input, swap.model.get_layer("bn").output)(x)).reshape(
        -1, 6
    )
    slope = [np.polyfit(a, b, 1)[0] for a, b in zip(z.T, y.T, strict=True)]
    np.testing.assert_allclose(slope, 1, atol=0.05)


def test_damping_is_a_share_of_the_variance():
    source = randomized(tiny_models.conv_bn_relu, images())
    data = images(seed=1)
    pure, damped = (
        kerasnorm.swap_norms(source, "layer", data, damping=a).model.get_layer("bn")
        for a in (0.0, 1.0)
    )
    assert damped.epsilon / pure.epsilon == pytest.approx(1e5, rel=1e-6)


def test_dead_channels_and_rank_deficient_inputs():
    source = randomized(two_convolutions, images())
    norm, conv = source.get_layer("bn"), source.get_layer("conv")
    kernel = np.array(conv.kernel)
    kernel[..., 1] = 0.0
    kernel[..., 3] = kernel[..., 2]
    conv.kernel.assign(kernel)
    gamma = np.array(norm.gamma)
    gamma[5] = 0.0
    norm.gamma.assign(gamma)
    norm.moving_variance.assign(np.where(np.arange(12) == 1, 1e-36, norm.moving_variance))
    for target in ("layer", "group", "cosine"):
        swap = kerasnorm.swap_norms(source, target, images(rows=60, seed=1), sites=every_site)
        assert all(np.isfinite(w).all() for w in swap.model.get_weights())
        assert all(0.5 < site.fit <= 1.0 for site in swap.report.sites)


def test_nested_models_and_code_are_fitted_too():
    source = tiny_models.nested()
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 4)).astype("float32")
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "layer", x)
    fits = {site.name: site.fit for site in swap.report.sites}
    assert fits["block/second"] is not None
    assert fits["tail/bn"] is not None


def test_a_shared_batch_norm_with_two_forms_becomes_two_layers():
    source = tiny_models.shared_bn()
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "layer", x, sites=every_site)
    assert [site.rule for site in swap.report.sites] == ["to_layer 1", "to_layer 2", "to_layer 2"]
    norms = [layer for layer in swap.model.layers if isinstance(layer, LayerNorm)]
    assert len(norms) == 2


def test_what_is_left_alone_and_what_is_mixed():
    source = randomized(two_convolutions, images())
    swap = kerasnorm.swap_norms(source, {"bn": "layer", "bn_2": "weight"})
    assert [s.becomes for s in swap.report.sites] == ["LayerNorm", "WeightNorm(SeparableConv2D)"]
    assert json.dumps(swap.report.to_dict())


def test_saved_and_exported(tmp_path):
    source = randomized(two_convolutions, images())
    swap = kerasnorm.swap_norms(source, "layer", images(rows=60, seed=1), sites=every_site)
    swap.model.save(tmp_path / "swapped.keras")
    x = images(seed=2)
    again = keras.models.load_model(tmp_path / "swapped.keras")
    np.testing.assert_array_equal(swap.model(x), again(x))
    counts = kerasnorm.export_onnx(swap.model, tmp_path / "swapped.onnx").op_counts
    assert counts["LayerNormalization"] == 2
    folded = kerasnorm.fold_norms(swap.model)
    np.testing.assert_allclose(folded(x), swap.model(x), rtol=1e-4, atol=1e-5)


def test_inspect_says_what_each_target_would_do():
    sites = kerasnorm.inspect_norms(tiny_models.conv_bn_relu()).sites
    assert [(s.target, s.verdict, s.becomes) for s in sites] == [
        ("weight", "exact", "WeightNorm(Conv2D)"),
        ("layer", "matched", "LayerNorm"),
        ("group", "matched", "GroupNorm"),
        ("cosine", "calibrated", "CosineNorm(Conv2D)"),
    ]


def test_a_site_that_is_refused_stays():
    source = tiny_models.training_fixed()
    swap = kerasnorm.swap_norms(source, "layer")
    assert [s.verdict for s in swap.report.sites] == ["refused", "matched"]
    with pytest.raises(SwapError, match="`strict` allows no refused site"):
        kerasnorm.swap_norms(source, "layer", strict=True)
