"""Copies of layers that tell less than they hold, or tell it late; their flags; what they share."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasnorm
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.errors import SwapError


@keras.saving.register_keras_serializable(package="test_copying")
class MadeByBuild(layers.Layer):
    """Makes a Dense layer in `build`, in front of the one that the constructor made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.last = layers.Dense(3, activation="relu")

    def build(self, shape):
        self.first = layers.Dense(3, activation="tanh")
        self._layers = [self.first, self.last]
        self.first.build(shape)
        self.last.build((*shape[:-1], 3))

    def call(self, x):
        return self.last(self.first(x))


@keras.saving.register_keras_serializable(package="test_copying")
class LengthensItsName(layers.Layer):
    def __init__(self, name=None, **kwargs):
        super().__init__(name=f"{name}_0", **kwargs)
        self.dense = layers.Dense(3, name=f"{self.name}_dense")
        self.norm = layers.BatchNormalization(name=f"{self.name}_norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 3))

    def call(self, x):
        return self.norm(self.dense(x))


@keras.saving.register_keras_serializable(package="test_copying")
class PaddedLate(layers.Layer):
    """Leaves what has no weights to its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pad = layers.ZeroPadding1D(1)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build((shape[0], None, shape[-1]))

    def call(self, x):
        return self.norm(self.pad(x))

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 2, shape[2])


@keras.saving.register_keras_serializable(package="test_copying")
class TellsItsVariable(layers.Layer):
    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer=keras.initializers.Constant(self.scale))

    def call(self, x):
        return x * ops.convert_to_tensor(self.scale)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="test_copying")
class TellsTheVariableOfADense(layers.Dense):
    def get_config(self):
        return {**super().get_config(), "units": self.kernel}


def swapped_with_norm(layer, shape=(5, 4)):
    model = keras.Sequential([keras.Input(shape), layer, layers.BatchNormalization()])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    model(x)
    return model, kerasnorm.swap_norms(model, "weight"), x


def test_functions_stay_with_their_layers():
    layer = MadeByBuild(name="block")
    _, swap, _ = swapped_with_norm(layer)
    copy = swap.model.get_layer("block")
    assert copy.first.activation is keras.activations.tanh
    assert copy.last.activation is keras.activations.relu
    assert [copy.first.name, copy.last.name] == [layer.first.name, layer.last.name]


def test_names_stay_as_they_are():
    model, swap, _ = swapped_with_norm(LengthensItsName(name="block"))
    assert [layer.name for layer in swap.model.layers[:1]] == ["block_0"]
    copy = swap.model.layers[0]
    assert copy.dense.name == "block_0_dense"
    assert swap.report.layers["block_0/block_0_norm"] == "block_0/block_0_dense"
    assert swap.report.sites[0].verdict == "exact"
    assert model.layers[0].dense.name == "block_0_dense"


def test_layers_that_are_built_when_called():
    model, swap, x = swapped_with_norm(PaddedLate())
    assert [site.verdict for site in swap.report.sites] == ["exact"] * 2
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-6)


def test_a_variable_in_a_config_is_not_shared():
    layer = TellsItsVariable(2.0, name="scale")
    model, swap, x = swapped_with_norm(layer)
    assert swap.model.get_layer("scale").scale is not layer.scale
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-6)


def test_a_variable_in_a_config_of_a_layer_of_keras_is_refused():
    layer = TellsTheVariableOfADense(3)
    layer.build((None, 4))
    with pytest.raises(SwapError, match="it holds variables, which the copy would share"):
        copy_layer(layer)


@keras.saving.register_keras_serializable(package="test_copying")
class UnderTwoNames(layers.Layer):
    """Holds one layer under two names, which its config makes two layers of."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def build(self, shape):
        self.first.build(shape)

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        held = {"first": self.first, "second": self.second}
        own = {k: keras.saving.serialize_keras_object(v) for k, v in held.items()}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        held = {
            k: keras.saving.deserialize_keras_object(config.pop(k)) for k in ("first", "second")
        }
        return cls(**held, **config)


def test_what_a_config_makes_two_of_stays_one():
    dense = layers.Dense(4)
    model = keras.Sequential(
        [keras.Input((4,)), UnderTwoNames(dense, dense, name="twice"), layers.BatchNormalization()]
    )
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    twice = swap.model.get_layer("twice")
    assert twice.first is twice.second
    assert twice.first is not dense
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-5)


@keras.saving.register_keras_serializable(package="test_copying")
class TellsNoFlag(layers.Layer):
    """A block whose config says nothing of what is trained."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.scale

    def get_config(self):
        return {"name": self.name}


class TellsNothing(TellsNoFlag):
    """The same without a config."""

    def get_config(self):
        raise NotImplementedError


def freeze_nothing(layer):
    pass


def freeze_layer(layer):
    layer.trainable = False


def freeze_inner(layer):
    layer.dense.trainable = False


def freeze_all_but_inner(layer):
    layer.trainable = False
    layer.dense.trainable = True


def freeze_weight(layer):
    layer.scale.trainable = False


def freeze_inner_weight(layer):
    layer.dense.kernel.trainable = False


def flags(layer):
    weights = [(v.name, v.trainable) for v in layer.variables]
    return [layer.trainable, layer.dense.trainable, weights]


@dataclasses.dataclass
class Factor:
    value: float = 1.0


@keras.saving.register_keras_serializable(package="test_copying")
class Multiplies(layers.Layer):
    """Takes an argument that Keras cannot save, and has no config of its own."""

    def __init__(self, factor=None, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor or Factor()

    def call(self, x):
        return self.factor.value * x


def test_a_copy_of_what_cannot_be_saved_cannot_either(tmp_path):
    model, swap, x = swapped_with_norm(Multiplies(Factor(5.0)), (4,))
    for one in (model, swap.model):
        with pytest.raises(NotImplementedError, match="Object Multiplies was created by passing"):
            one.save(tmp_path / "model.keras")
    again = kerasnorm.swap_norms(swap.model, "weight").model
    for one in (swap.model, again, kerasnorm.fold_norms(swap.model)):
        np.testing.assert_allclose(one(x), model(x), atol=1e-5)


@pytest.mark.parametrize("cls", [TellsNoFlag, TellsNothing])
@pytest.mark.parametrize(
    "freeze",
    [
        freeze_nothing,
        freeze_layer,
        freeze_inner,
        freeze_all_but_inner,
        freeze_weight,
        freeze_inner_weight,
    ],
)
def test_what_is_trained_stays_so(cls, freeze):
    layer = cls(name="block")
    layer.build((None, 4))
    freeze(layer)
    _, swap, _ = swapped_with_norm(layer, (4,))
    copy = swap.model.get_layer("block")
    assert flags(copy) == flags(layer)
    assert len(copy.trainable_variables) == len(layer.trainable_variables)
    for one in (layer, copy):  # what can be trained again is the same, too
        one.trainable = False
        one.trainable = True
    assert flags(copy) == flags(layer)


class Holder(layers.Layer):
    """Calls layers that it is given; none of them is a BatchNorm, so that it stays unopened."""

    def __init__(self, *steps, **kwargs):
        super().__init__(**kwargs)
        self.steps = list(steps)

    def build(self, shape):
        for step in self.steps:
            if not step.built:
                step.build(shape)

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


def in_graph_first(dense):
    def build(x):
        return Holder(dense, layers.ReLU(), name="holder")(dense(x))

    return build


def in_holder_first(dense):
    def build(x):
        return dense(Holder(layers.ReLU(), dense, name="holder")(x))

    return build


def in_two_holders(dense):
    def build(x):
        return Holder(dense, name="other")(Holder(layers.ReLU(), dense, name="holder")(x))

    return build


def in_holders_in_holders(dense):
    def build(x):
        x = Holder(Holder(dense, name="inner"), name="holder")(x)
        return layers.Flatten()(layers.TimeDistributed(dense)(x[:, None, :]))

    return build


@pytest.mark.parametrize(
    "make", [in_graph_first, in_holder_first, in_two_holders, in_holders_in_holders]
)
def test_a_layer_that_is_called_in_two_places_stays_one(make):
    dense = layers.Dense(4, name="dense")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(make(dense)(inputs)))
    assert len(model.trainable_variables) == 4
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    kernels = [v for v in swap.model.variables if v.path.endswith("dense/kernel")]
    assert len(kernels) == 1
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    before = np.array(swap.model(x))
    kernels[0].assign(0 * kernels[0])
    dense.kernel.assign(0 * dense.kernel)
    assert np.abs(before - swap.model(x)).max() > 1e-3
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-6)


@keras.saving.register_keras_serializable(package="test_copying")
class MakesItsLayerLate(layers.Layer):
    def build(self, shape):
        self.dense = layers.Dense(4)
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


@keras.saving.register_keras_serializable(package="test_copying")
class HolderWithConfig(layers.Layer):
    def __init__(self, shared, **kwargs):
        super().__init__(**kwargs)
        self.late, self.shared = MakesItsLayerLate(), shared

    def build(self, shape):
        self.late.build(shape)

    def call(self, x):
        return self.shared(self.late(x))

    def get_config(self):
        shared = keras.saving.serialize_keras_object(self.shared)
        return {**super().get_config(), "shared": shared}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("shared")), **config)


def test_a_layer_stays_one_beside_a_layer_that_is_made_late():
    dense = layers.Dense(4, name="dense")
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="norm")(dense(inputs))
    model = keras.Model(inputs, HolderWithConfig(dense, name="holder")(x))
    swapped = kerasnorm.swap_norms(model, "weight", strict=True).model
    assert swapped.get_layer("holder").shared is swapped.get_layer("dense")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.testing.assert_allclose(swapped(x), model(x), atol=1e-5)


class Tied(layers.Layer):
    """Takes the kernel of another layer, and not the layer."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.kernel = other.kernel

    def call(self, x):
        return x @ self.kernel


@pytest.mark.parametrize("between", [layers.ReLU, layers.BatchNormalization])
@pytest.mark.parametrize("target", ["weight", "layer", "group"])
def test_layers_that_share_a_variable_alone_are_refused(between, target):
    """The layer whose variable it is may be one that is replaced."""
    dense = layers.Dense(4, name="dense")
    inputs = keras.Input((4,))
    x = between()(dense(inputs))
    model = keras.Model(inputs, layers.BatchNormalization()(Tied(dense, name="tied")(x)))
    with pytest.raises(SwapError, match=r"layer 'tied': What layers share .* a Tied whose copy"):
        kerasnorm.swap_norms(model, target)


def test_code_that_reads_a_variable_of_a_layer_that_is_replaced_is_refused():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense, self.norm = layers.Dense(4, name="dense"), layers.BatchNormalization()

        def call(self, x):
            return self.norm(self.dense(x)) @ ops.transpose(self.dense.kernel)

    net = Net()
    net(np.ones((2, 3), "float32"))
    with pytest.raises(SwapError, match=r"in the place of 'dense'.* no attribute 'kernel'"):
        kerasnorm.swap_norms(net, "weight")


def test_a_layer_that_is_held_twice_and_called_in_code():
    """The graph calls it too, so that the code has to be given the graph's own clone of it."""
    dense = layers.Dense(4, name="dense")
    block = Holder(dense, layers.BatchNormalization(name="inner"), name="block")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(dense(block(inputs))))
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    assert swap.model.get_layer("block").steps[0] is swap.model.get_layer("dense")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(4, stateful=True),
        lambda: layers.Bidirectional(layers.GRU(4, stateful=True)),
        lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], stateful=True),
    ],
)
def test_the_states_of_recurrent_layers_are_carried(make):
    inputs = keras.Input(batch_shape=(4, 5, 3))
    model = keras.Model(inputs, layers.BatchNormalization()(make()(inputs)))
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")
    model.predict(x, verbose=0)
    swapped = kerasnorm.swap_norms(model, "weight", strict=True).model
    folded = kerasnorm.fold_norms(swapped)
    for _ in range(2):
        expected = model.predict(x, verbose=0)
        for copy in (swapped, folded):
            np.testing.assert_allclose(copy.predict(x, verbose=0), expected, atol=1e-5)


class MeanSoFar(layers.Layer):
    """Adds the mean of all that it was called on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean()

    def call(self, x):
        self.mean.update_state(x)
        return x + self.mean.result()


def test_the_metrics_in_layers_are_carried():
    stack = [layers.Dense(3), layers.BatchNormalization(), MeanSoFar(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *stack, layers.BatchNormalization()])
    x = np.random.default_rng(0).normal(1, 1, (8, 4)).astype("float32")
    model.predict(3 * x, verbose=0)
    mean = stack[2].mean
    before = [np.array(v) for v in mean.variables]
    assert before[1] > 0
    swapped = kerasnorm.swap_norms(model, "weight", strict=True).model
    folded = kerasnorm.fold_norms(swapped)
    assert all(np.array_equal(a, b) for a, b in zip(before, mean.variables, strict=True))
    for _ in range(2):
        expected = model.predict(x, verbose=0)
        for copy in (swapped, folded):
            np.testing.assert_allclose(copy.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("cls", [layers.ELU, layers.Identity])
def test_layers_of_keras_without_a_config_of_their_own(cls):
    """Their `get_config` fails where they got a policy and not its name."""
    layer = cls(dtype=keras.DTypePolicy("mixed_float16"), name="last")
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layer])
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    swap = kerasnorm.swap_norms(model, "weight")
    assert swap.model.get_layer("last").dtype_policy == layer.dtype_policy
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-2)


class CodeThatTellsLess(layers.Layer):
    """A block of code whose config makes another one than it is."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = layers.Dense(units), layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.dense.units))

    def call(self, x):
        return self.norm(ops.tanh(self.dense(x)))

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype_policy.name}


class WrapperThatTellsLess(layers.Wrapper):
    """The same of a class that cannot be cloned by its attributes."""

    def __init__(self, layer=None, **kwargs):
        super().__init__(layer or layers.Dense(4), **kwargs)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.layer.build(shape)
        self.norm.build((*shape[:-1], self.layer.units))
        self.built = True

    def call(self, x):
        return self.norm(ops.tanh(self.layer(x)))

    def get_config(self):
        return {"name": self.name}


def test_code_whose_config_makes_another_is_cloned_by_its_attributes():
    model = keras.Sequential([keras.Input((3,)), CodeThatTellsLess(6, name="block")])
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-5)


def test_code_that_can_be_cloned_in_neither_way_is_refused():
    block = WrapperThatTellsLess(layers.Dense(6), name="block")
    model = keras.Sequential([keras.Input((3,)), block])
    with pytest.raises(SwapError, match=r"'block': .* WrapperThatTellsLess cannot be made"):
        kerasnorm.swap_norms(model, "weight")


def test_what_loading_reported_is_of_the_source_alone():
    layer = Multiplies(Factor(5.0), name="times")
    layer.load_report = ["a line"]
    layer.later = [Factor(2.0)]
    copy = copy_layer(layer)
    assert not hasattr(copy, "load_report")
    assert copy.later[0] == layer.later[0]
    assert copy.later[0] is not layer.later[0]
    assert (copy.name, copy.factor.value) == ("times", 5.0)


@keras.saving.register_keras_serializable(package="test_copying")
class Blend(layers.Layer):
    """Takes two inputs, and is built for both."""

    def build(self, shapes):
        first, second = shapes
        self.mix = self.add_weight(shape=(first[-1], second[-1]))

    def call(self, inputs):
        first, second = inputs
        return first @ self.mix + second


class CallsABlend(layers.Layer):
    def __init__(self, blend, **kwargs):
        super().__init__(**kwargs)
        self.blend, self.norm = blend, layers.BatchNormalization(name="inner")

    def call(self, x):
        return self.norm(self.blend([x, ops.tanh(x)]))


def test_a_layer_of_two_inputs_that_code_and_a_graph_call():
    blend, inputs = Blend(name="blend"), keras.Input((4,))
    x = CallsABlend(blend, name="block")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(blend([x, inputs])))
    swapped = kerasnorm.swap_norms(model, "weight", strict=True).model
    assert swapped.get_layer("block").blend is swapped.get_layer("blend")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.testing.assert_allclose(swapped(x), model(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["functional", "sequential", "unbuilt"])
def test_models_of_kerass_own_classes_are_copied_layer_by_layer(kind):
    """Their configs would lose what the configs of their layers do."""
    times, dense = Multiplies(Factor(5.0), name="times"), layers.Dense(4, name="dense")
    if kind == "functional":
        inputs = keras.Input((4,))
        model = keras.Model(inputs, dense(times(dense(inputs))), name="model")
    else:
        first = [keras.Input((4,))] if kind == "sequential" else []
        model = keras.Sequential([*first, dense, times, dense], name="model")
    model.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    copy = copy_layer(model)
    assert (type(copy), copy.name, copy.built) == (type(model), "model", model.built)
    assert copy.dtype_policy == model.dtype_policy
    names = [layer.name for layer in model.layers]
    assert [layer.name for layer in copy.layers] == names
    assert not {id(layer) for layer in model.layers} & {id(layer) for layer in copy.layers}
    assert copy.get_layer("times").factor == Factor(5.0)
    assert len({id(layer) for layer in copy.layers}) == len({id(layer) for layer in model.layers})
