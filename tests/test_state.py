"""What a copied layer is given of its source beside a config."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasnorm.clone.by_config import _accepted
from kerasnorm.clone.operation import clone_arguments, clone_operation
from kerasnorm.clone.replace_sublayer import replace_sublayer
from kerasnorm.clone.state import build_alike, carry_functions, carry_values, copy_state
from kerasnorm.errors import SwapError
from kerasnorm.targets.plain import drop_penalties


class Penalty(keras.regularizers.Regularizer):
    def __init__(self, factor=1.0, inner=None):
        self.factor, self.inner = factor, inner
        self.flag, self.count, self.name, self.array = True, 1, "a", np.zeros(2)
        self.variable = keras.Variable(np.zeros(2, "float32"))
        self.kept = ["its own"]

    def __call__(self, x):
        return self.factor * ops.sum(ops.square(x))


def test_values_that_changed_since_a_config_was_made_are_carried():
    source, copy = Penalty(2.0, Penalty(3.0)), Penalty(1.0, Penalty(1.0))
    source.flag, source.count, source.name, source.array = False, 7, "b", np.ones(2)
    source.variable.assign([1.0, 2.0])
    source.kept, variable, inner = ["others"], copy.variable, copy.inner
    carry_values(source, copy)
    assert (copy.factor, copy.flag, copy.count, copy.name) == (2.0, False, 7, "b")
    np.testing.assert_array_equal(copy.array, [1, 1])
    assert copy.array is not source.array
    assert copy.variable is variable
    np.testing.assert_array_equal(variable, [1, 2])
    assert copy.inner is inner
    assert inner.factor == 3.0
    assert copy.kept == ["its own"]


def test_values_are_carried_between_objects_of_one_class_only():
    copy = keras.regularizers.L2(0.5)
    carry_values(keras.regularizers.L1(0.1), copy)
    carry_values(None, copy)
    carry_values(keras.regularizers.L2(0.1), None)
    carry_values(1.0, 2.0)
    assert copy.l2 == pytest.approx(0.5)
    source, copy = Penalty(), Penalty()
    source.variable = keras.Variable(np.ones(3, "float32"))  # of another shape
    carry_values(source, copy)
    np.testing.assert_array_equal(copy.variable, [0, 0])


def test_functions_and_penalties_are_carried_under_their_names():
    source = layers.Dense(2, kernel_regularizer=Penalty(2.0), activation=lambda x: x + 1)
    copy = layers.Dense(2, kernel_regularizer=Penalty(1.0), activation="relu")
    source.extra = lambda x: x
    carry_functions(source, copy)
    assert copy.activation is source.activation
    assert copy.kernel_regularizer.factor == 2.0
    assert copy.kernel_regularizer is not source.kernel_regularizer
    assert not hasattr(copy, "extra")
    # what leads to a layer stays the copy's own
    source.activation = lambda x: source(x)
    own = copy.activation
    carry_functions(source, copy)
    assert copy.activation is own


def test_a_constructor_is_given_what_it_takes():
    config = {"units": 2, "name": "a", "dtype": "float32", "trainable": True}

    class TakesUnits:
        def __init__(self, units):
            pass

    class TakesItsName:
        def __init__(self, units, name="b"):
            pass

    class TakesAnything:
        def __init__(self, units, **kwargs):
            pass

    assert _accepted(TakesUnits, config) == {"units": 2}
    assert _accepted(TakesItsName, config) == {"units": 2, "name": "a"}
    assert _accepted(TakesAnything, config) == config
    assert _accepted(TakesUnits, {**config, "more": 1}) == {"units": 2, "more": 1}


def pair_of_blocks(build=True):
    pair = [layers.Bidirectional(layers.LSTM(2, name=name)) for name in ("one", "two")]
    for layer in pair if build else pair[:1]:
        layer.build((None, 3, 4))
    return pair


def test_weights_names_and_flags_are_copied():
    source, copy = pair_of_blocks()
    rng = np.random.default_rng(0)
    for variable in source.variables:
        variable.assign(rng.normal(size=variable.shape))
    source.forward_layer.trainable = False
    source.backward_layer.cell.bias.trainable = False
    copy_state(source, copy)
    for old, new in zip(source.variables, copy.variables, strict=True):
        np.testing.assert_array_equal(new, old)
        assert (new.trainable, new is old) == (old.trainable, False)
    assert copy.forward_layer.name == source.forward_layer.name
    assert copy.backward_layer.trainable
    assert not copy.forward_layer.trainable


def test_a_copy_with_other_variables_or_layers_is_refused():
    source, copy = layers.Dense(2, name="dense"), layers.Dense(3)
    source.build((None, 4))
    copy.build((None, 4))
    with pytest.raises(
        SwapError,
        match=r"layer 'dense': The copy of a layer must have the variables of its source. "
        r"Received \['kernel \(4, 3\)', 'bias \(3,\)'\] for \['kernel \(4, 2\)', 'bias \(2,\)'\]",
    ):
        copy_state(source, copy)
    other = layers.Dense(2, dtype="float64")
    other.build((None, 4))
    with pytest.raises(SwapError, match="must have the variables of its source"):
        copy_state(source, other)
    source, copy = layers.Bidirectional(layers.LSTM(2)), layers.Bidirectional(layers.GRU(2))
    with pytest.raises(SwapError, match=r"must have the layers of its source\. Received \['forw"):
        copy_state(source, copy)


def test_variables_are_known_by_their_names_where_their_order_differs():
    source = layers.Dense(4)
    source.build((None, 4))
    source.bias.assign([1.0, 2.0, 3.0, 4.0])
    source.quantize("float8")
    copy = layers.Dense.from_config(source.get_config())
    copy.build((None, 4))
    assert [v.name for v in copy.variables] != [v.name for v in source.variables]
    copy_state(source, copy)
    for variable in source.variables:
        (own,) = (v for v in copy.variables if v.name == variable.name)
        np.testing.assert_array_equal(own, variable)


def test_layers_inside_are_built_alike():
    class Late(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense, self.other = layers.Dense(2), layers.Dense(3)

    source, copy = Late(), Late()
    source.dense.build((None, 5))
    build_alike(source, copy)
    assert copy.dense.kernel.shape == (5, 2)
    assert not copy.other.built
    kernel = copy.dense.kernel
    build_alike(source, copy)
    assert copy.dense.kernel is kernel


def test_vocabularies_are_copied():
    source, copy = layers.StringLookup(), layers.StringLookup()
    source.set_vocabulary(["a", "b"])
    source.build((None, 1))
    copy_state(source, copy)
    assert copy.get_vocabulary() == ["[UNK]", "a", "b"]


def test_penalties_that_mean_other_weights_are_dropped():
    def block():
        penalties = {f"{name}_regularizer": "l2" for name in ("kernel", "bias", "activity")}
        penalties |= {f"{name}_constraint": "non_neg" for name in ("kernel", "bias")}
        return layers.TimeDistributed(layers.Dense(2, **penalties))

    for kept in ((), ("activity",), ("bias", "activity")):
        layer = block()
        drop_penalties(layer, kept)
        for name in ("kernel", "bias", "activity"):
            assert (getattr(layer.layer, f"{name}_regularizer") is not None) == (name in kept)
        for name in ("kernel", "bias"):
            assert (getattr(layer.layer, f"{name}_constraint") is not None) == (name in kept)


def test_operations_have_arrays_of_their_own_and_no_variables():
    array = np.arange(3.0, dtype="float32")
    inputs = keras.Input((3,))
    operation = ops.add(inputs, array)._keras_history.operation
    assert clone_operation(operation) is not operation
    assert type(clone_operation(operation)) is type(operation)
    copied = clone_arguments((1, {"x": array}, "text"), "net")
    assert copied[1]["x"] is not array
    np.testing.assert_array_equal(copied[1]["x"], array)
    layer = layers.Dense(2, name="held")
    layer.build((None, 3))
    for value, name in ((layer, "held"), (layer.kernel, "held/kernel")):
        with pytest.raises(
            SwapError, match=f"'net': Operations must not take .* Received '{name}', which the copy"
        ):
            clone_arguments([value], "net")


class Holds(layers.Layer):
    def __init__(self, layer):
        super().__init__(name="holder")
        self.direct, self.listed = layer, [layer, {"again": layer}]
        self.beside, self.plain = layers.ReLU(), [1, 2]
        self.function = lambda x: layer(x)


def test_a_layer_is_replaced_wherever_it_is_held():
    old, new = layers.Dense(2, name="old"), layers.Dense(2, name="new")
    holder = Holds(old)
    outer = layers.TimeDistributed(holder)
    beside, plain = holder.beside, holder.plain
    replace_sublayer(outer, old, new)
    assert holder.direct is new
    assert holder.listed[0] is new
    assert holder.listed[1]["again"] is new
    assert holder.beside is beside
    assert holder.plain is plain
    (cell,) = holder.function.__closure__
    assert cell.cell_contents is new
    assert old not in holder._flatten_layers()


def test_a_layer_that_is_held_in_another_way_is_refused():
    class Hides(layers.Layer):
        def __init__(self, layer):
            super().__init__(name="holder")
            self._layers.append(keras.Sequential([keras.Input((3,)), layer]))

    old = layers.Dense(2, name="old")
    with pytest.raises(SwapError, match="Received 'old', which 'holder' holds in another way"):
        replace_sublayer(Hides(old), old, layers.Dense(2))
