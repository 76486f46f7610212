"""Subclassed models and layers with code of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_code
from fidelity import SITE_TOLERANCE, all_layers, assert_exact, randomize
from keras import layers, ops
from storage import assert_shares_no_storage

import kerasnorm
from kerasnorm import SwapError, WeightNorm
from kerasnorm.graph import sites
from kerasnorm.keras_private import sublayers

# kind: {site: layer it became}
BECOMES = {
    "in attributes": {"norm": "WeightNorm(Dense)"},
    "in a list": {"norm_0": "WeightNorm(Affine)", "norm_1": "WeightNorm(Affine)"},
    "in a tuple": {"norm": "WeightNorm(Dense)"},
    "in a dict": {"norm": "WeightNorm(Dense)"},
    "two deep": {"outer/block/norm": "WeightNorm(Dense)", "outer/norm": "WeightNorm(Affine)"},
    "a block called twice": {"block/norm": "WeightNorm(Dense)"},
    "a norm called twice": {"norm": "WeightNorm(Affine)", "norm#2": "WeightNorm(Affine)"},
    "a constructor without keywords": {"norm": "WeightNorm(Dense)"},
    "a dict of inputs": {"norm_left": "WeightNorm(Dense)", "norm_right": "WeightNorm(Dense)"},
    "training inside": {"live": "BatchNorm", "stored": "WeightNorm(Affine)"},
    "models inside": {"stem/norm": "WeightNorm(Conv2D)", "body/norm": "WeightNorm(Affine)"},
    "a sequence": {"norm": "WeightNorm(Dense)"},
}


def randomized(kind):
    model, x = tiny_code.subclassed(kind)
    randomize(model, x)
    return model, x


def records(model) -> list[int]:
    """How many calls Keras has recorded of each layer."""
    return [len(layer._inbound_nodes) for layer in (model, *sublayers(model))]


def assert_same(source, other, x):
    answers = zip(keras.tree.flatten(source(x)), keras.tree.flatten(other(x)), strict=True)
    for expected, received in answers:
        np.testing.assert_allclose(received, expected, atol=SITE_TOLERANCE * np.std(expected))


@pytest.mark.parametrize("kind", tiny_code.SUBCLASSED)
def test_exact_and_the_source_untouched(kind):
    source, x = randomized(kind)
    before, calls = source.get_weights(), records(source)
    swap = kerasnorm.swap_norms(source, "weight")
    assert {site.name: site.becomes for site in swap.report.sites} == BECOMES[kind]
    assert type(swap.model) is type(source)
    assert swap.model.name == source.name
    differences = swap.compare(x)
    assert set(BECOMES[kind]) < set(differences)
    assert max(differences.values()) < SITE_TOLERANCE
    assert records(source) == calls
    assert all(np.array_equal(a, b) for a, b in zip(before, source.get_weights(), strict=True))
    assert_same(source, swap.model, x)
    assert not {id(v) for v in source.variables} & {id(v) for v in swap.model.variables}
    assert not {id(la) for la in sublayers(source)} & {id(la) for la in sublayers(swap.model)}


@pytest.mark.parametrize("kind", tiny_code.SUBCLASSED)
def test_the_copy_trains(kind):
    source, x = randomized(kind)
    before = source.get_weights()
    model = kerasnorm.swap_norms(source, "weight").model
    target = keras.tree.map_structure(np.zeros_like, model.predict(x, verbose=0))
    model.compile(
        keras.optimizers.SGD(0.001),
        keras.tree.map_structure(lambda _: "mse", target),
        jit_compile=False,
    )
    losses = model.fit(x, target, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(v.path for v in model.trainable_variables)
    assert all(np.array_equal(a, b) for a, b in zip(before, source.get_weights(), strict=True))


@pytest.mark.parametrize("kind", tiny_code.SUBCLASSED)
def test_saved_weights_go_into_a_new_instance_swapped_the_same_way(kind, tmp_path):
    source, x = randomized(kind)
    swap = kerasnorm.swap_norms(source, "weight")
    assert any("to load saved weights, swap a new instance" in n for n in swap.report.notes)
    swap.model.save_weights(tmp_path / "swapped.weights.h5")
    fresh, _ = tiny_code.SUBCLASSED[kind]()
    fresh(x)
    again = kerasnorm.swap_norms(fresh, "weight").model
    again.load_weights(tmp_path / "swapped.weights.h5")
    assert_same(swap.model, again, x)


def test_the_class_of_inner_layers_is_kept():
    source, _ = randomized("two deep")
    model = kerasnorm.swap_norms(source, "weight").model
    assert type(model.outer) is tiny_code.Outer
    assert type(model.outer.block) is tiny_code.Block
    assert isinstance(model.outer.block.dense, WeightNorm)
    assert isinstance(model.outer.block.norm, layers.Identity)


def functional(*steps, shape=(4,)):
    inputs = keras.Input(shape)
    x = inputs
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def rows(model):
    rng = np.random.default_rng(1)
    return rng.normal(size=(16, *model.input_shape[1:])).astype("float32")


@pytest.mark.parametrize("shape", [(4,), (6, 4)])
def test_a_layer_with_code_in_a_graph(shape):
    source = functional(tiny_code.Block(5, name="block"), layers.Dense(2), shape=shape)
    randomize(source, rows(source))
    before, calls = source.get_weights(), records(source)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert [(s.name, s.becomes) for s in swap.report.sites] == [("block/norm", "WeightNorm(Dense)")]
    assert_exact(source, swap, rows(source))
    assert records(source) == calls
    assert all(np.array_equal(a, b) for a, b in zip(before, source.get_weights(), strict=True))


def test_a_layer_with_code_called_twice():
    block = tiny_code.Block(4, name="block")
    source = functional(block, layers.ReLU(), block)
    randomize(source, rows(source))
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert_exact(source, swap, rows(source))
    assert len({id(la) for la in swap.model.layers if la.name == "block"}) == 1


def test_a_layer_with_code_called_on_several_sizes():
    inputs = keras.Input((6, 4)), keras.Input((3, 4))
    block = tiny_code.Block(4, name="block")
    inner = keras.Model(inputs[0], block(inputs[0]), name="inner")
    source = keras.Model(inputs, [inner(inputs[0]), block(inputs[1])])
    x = [rows(functional(shape=tensor.shape[1:])) for tensor in inputs]
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert [site.becomes for site in swap.report.sites] == ["WeightNorm(Dense)"]
    assert_exact(source, swap, x)


def test_a_layer_whose_code_depends_on_its_arguments_stays():
    inputs = keras.Input((4,))
    either = tiny_code.Either(name="either")
    source = keras.Model(inputs, [either(inputs), either(inputs, plain=True)])
    swap = kerasnorm.swap_norms(source, "weight")
    (site,) = swap.report.sites
    assert site.verdict == "refused"
    assert "inside 'either': it is called in several ways" in site.reason
    assert_same(source, swap.model, rows(source))


class Conditional(keras.Model):
    """A model with arguments that its inputs do not tell of."""

    def __init__(self, head):
        super().__init__(name="net")
        self.dense, self.other = layers.Dense(4, name="dense"), layers.Dense(4, name="other")
        self.norm, self.head = layers.BatchNormalization(name="norm"), head

    def call(self, x, context=None, features=False, training=None):
        h = self.dense(x)
        if features:
            return h
        if context is not None:
            h = h + self.other(context)
        return self.head(ops.relu(self.norm(h, training=training)))


@pytest.mark.parametrize("head", [tiny_code.Block, layers.Dense])
def test_a_model_that_may_be_called_in_several_ways(head):
    source, x = Conditional(head(2)), rows(functional(shape=(3,)))
    source(x, context=x)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert {site.becomes for site in swap.report.sites} == {"WeightNorm(Affine)"}
    assert "the code of 'net' may use it in another way, given `context`" in str(swap.report)
    model = kerasnorm.fold_norms(swap.model) if head is layers.Dense else swap.model
    for arguments in ({}, {"context": x[::-1]}, {"features": True}):
        expected, received = source(x, **arguments), model(x, **arguments)
        np.testing.assert_allclose(received, expected, atol=SITE_TOLERANCE * np.std(expected))


class Auxiliary(keras.Model):
    """Another way through the layers in training, and in a method of its own."""

    def __init__(self):
        super().__init__(name="net")
        self.dense, self.norm = layers.Dense(3, name="dense"), layers.BatchNormalization()
        self.norm.trainable = False

    def encode(self, x):
        return self.dense(x)

    def call(self, x, training=None):
        h = self.encode(x)
        y = self.norm(h, training=training)
        return y + h if training else y


class Encoding(Auxiliary):
    def call(self, x, training=None):
        return self.norm(self.encode(x), training=training)


def test_code_that_goes_another_way_in_training():
    source, x = Auxiliary(), rows(functional(shape=(3,)))
    source(x)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    (site,) = swap.report.sites
    assert site.becomes == "WeightNorm(Affine)"
    assert site.reason == "the code of 'net' may use it in another way in training"
    assert not [note for note in swap.report.notes if "encode" in note]
    for model in (swap.model, kerasnorm.fold_norms(swap.model)):
        for training in (False, True):
            expected = source(x, training=training)
            np.testing.assert_allclose(model(x, training=training), expected, atol=1e-5)
        np.testing.assert_allclose(model.encode(x), source.encode(x), atol=1e-5)


def test_methods_that_may_use_a_layer_apart_from_its_batch_norm_are_told():
    source, x = Encoding(), rows(functional(shape=(3,)))
    source(x)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    note = "'net': `call` gives what it gave; `encode` was not looked at"
    assert note in swap.report.notes


def test_several_call_arguments():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    source = keras.Model([a, b], tiny_code.Arguments(name="two")(a, b=b, scale=0.5))
    x = [rows(functional(shape=(3,))), rows(functional(shape=(5,)))]
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert swap.report.sites[0].becomes == "WeightNorm(Dense)"
    assert_exact(source, swap, x)


@pytest.mark.parametrize("layer", [tiny_code.RawTensorFlow, tiny_code.Branching])
def test_code_that_cannot_be_followed_is_refused_by_name(layer):
    source = functional(layer(name="own"), layers.Dense(3), layers.BatchNormalization(name="bn"))
    x = rows(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    by_name = {site.name: site for site in swap.report.sites}
    assert by_name["bn"].becomes == "WeightNorm(Dense)"
    assert by_name["own/norm"].verdict == "refused"
    assert "inside 'own': its code cannot be followed on symbolic" in by_name["own/norm"].reason
    assert_same(source, swap.model, x)
    for asked in (
        {"to": "weight"},
        {"to": {"own/norm": "weight"}},
        {"to": "weight", "sites": ["own/norm"]},
        {"to": "weight", "sites": lambda site: site.verdict == "refused"},
    ):
        with pytest.raises(SwapError, match=r"`strict` allows no refused site.*'own/norm'"):
            kerasnorm.swap_norms(source, **asked, strict=True)
    for left in (
        {"to": {"bn": "weight"}},
        {"to": "weight", "sites": ["bn"]},
        {"to": "weight", "sites": lambda site: site.verdict == "exact"},
    ):
        assert not kerasnorm.swap_norms(source, **left, strict=True).report.refused


def test_a_batch_norm_called_where_code_is_followed_and_where_not_is_refused_there():
    own = tiny_code.RawTensorFlow(name="own")
    source = functional(own, layers.Dense(4), own.norm)
    x = rows(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    verdicts = {site.name: site.verdict for site in swap.report.sites}
    assert verdicts == {"norm": "exact", "own/norm": "refused"}
    assert_same(source, swap.model, x)


def test_a_model_that_cannot_be_followed_is_refused_by_name():
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.own = tiny_code.RawTensorFlow(name="own")

        def call(self, x):
            return self.own(x) if float(x[0, 0]) > 0 else x

    net = Net()
    net(np.ones((2, 3), "float32"))
    with pytest.raises(SwapError, match=r"Keras must be able to follow.*a Net"):
        kerasnorm.swap_norms(net, "weight")


@pytest.mark.parametrize(
    "operate", [lambda w, h: h * w + h, lambda w, h: keras.ops.multiply(w, h) + h]
)
def test_code_with_a_variable_in_front_of_an_operator_is_told_to_turn_it_round(operate):
    class Weighted(keras.Model):
        def __init__(self, operate):
            super().__init__()
            self.dense = layers.Dense(4, name="dense")
            self.norm = layers.BatchNormalization(name="norm")
            self.w = self.add_weight(shape=(4,), name="w", initializer="ones")
            self.operate = operate

        def call(self, x):
            return self.operate(self.w, self.norm(self.dense(x)))

    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    source, turned = Weighted(lambda w, h: w * h + h), Weighted(operate)
    for model in (source, turned):
        model(x)
        randomize(model, x)
    with pytest.raises(SwapError, match=r"x \* self\.scale, not self\.scale \* x"):
        kerasnorm.swap_norms(source, "weight")
    swap = kerasnorm.swap_norms(turned, "weight")
    assert [site.becomes for site in swap.report.sites] == ["WeightNorm(Dense)"]
    assert_same(turned, swap.model, x)


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        (lambda x: x + keras.ops.zeros(keras.ops.shape(x)), r"without the batch size.*zeros_like"),
        (lambda x: keras.ops.reshape(x, (x.shape[0], 4)), r"In place of x\.shape\[0\], write -1"),
    ],
)
def test_code_that_needs_to_know_the_batch_size_is_told_how_to_do_without(resize, message):
    class Sized(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, name="dense")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, x):
            return resize(self.norm(self.dense(x)))

    source = Sized()
    source(np.ones((2, 3), "float32"))
    with pytest.raises(SwapError, match=message):
        kerasnorm.swap_norms(source, "weight")


def test_training_is_passed_on():
    """A layer called with training=True in the graph runs its BatchNorm live."""
    inputs = keras.Input((4,))
    block = tiny_code.Block(4, name="block")
    source = keras.Model(inputs, block(inputs, training=True))
    (site,) = kerasnorm.swap_norms(source, "weight").report.sites
    assert site.verdict == "refused"
    assert "training=True" in site.reason


TRAINS = (
    "it is called with training=True: its batch decides in `model(x)`, its moving statistics in"
)
CODE_TRAINS = "it is called with training=True by code, so that its batch decides"
TAKEN_IN = "taken in by 'dense'"


@pytest.mark.parametrize(
    ("training", "steps", "reason"),
    [
        (None, {"dropout": None, "norm": None}, f"{TAKEN_IN}, across 'dropout'"),
        (None, {"dropout": True, "norm": None}, CODE_TRAINS),
        (None, {"aside": True, "norm": None}, CODE_TRAINS),
        (None, {"norm": None, "dropout": True}, TAKEN_IN),
        (None, {"dropout": True, "norm": False}, "(Dropout) in front of it is called with"),
        (None, {"dropout": True, "within": None}, CODE_TRAINS),
        (True, {"norm": None}, TRAINS),
        (True, {"norm": False}, TAKEN_IN),
        (True, {"within": None}, TRAINS),
    ],
)
def test_what_is_told_to_train_in_code(training, steps, reason):
    inputs = keras.Input((4,))
    block = tiny_code.Steps(steps, name="block")
    source = keras.Model(inputs, block(inputs, training=training))
    randomize(source, rows(source))
    swap = kerasnorm.swap_norms(source, "weight")
    site = next(site for site in swap.report.sites if "no call" not in site.reason)
    assert reason in site.reason
    assert (site.verdict == "refused") == (reason in (TRAINS, CODE_TRAINS))
    assert_same(source, swap.model, rows(source))


def test_time_distributed():
    """Around a BatchNorm, a model with one, and a layer with code."""
    stack = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="dense"), layers.BatchNormalization(name="norm")],
        name="stack",
    )
    source = functional(
        layers.TimeDistributed(layers.BatchNormalization(name="norm"), name="plain"),
        layers.TimeDistributed(stack, name="model"),
        layers.TimeDistributed(tiny_code.Block(3, name="block"), name="code"),
        shape=(6, 4),
    )
    x = rows(source)
    randomize(source, x)
    calls = records(source)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert {site.name: site.becomes for site in swap.report.sites} == {
        "plain/norm": "WeightNorm(Affine)",
        "model/stack/norm": "WeightNorm(Dense)",
        "code/block/norm": "WeightNorm(Dense)",
    }
    assert_exact(source, swap, x)
    assert records(source) == calls
    assert not [la for la in all_layers(swap.model) if sites.is_batch_norm(la)]


def test_time_distributed_on_whole_numbers():
    inputs = keras.Input((6, 1), dtype="int32")
    source = keras.Model(inputs, layers.TimeDistributed(tiny_code.OneHot(5, name="own"))(inputs))
    x = np.random.default_rng(0).integers(5, size=(16, 6, 1))
    randomize(source, x)
    assert_exact(source, kerasnorm.swap_norms(source, "weight", strict=True), x)


def test_time_distributed_in_training_mode_is_refused():
    inputs = keras.Input((6, 4))
    layer = layers.TimeDistributed(layers.BatchNormalization(name="norm"), name="steps")
    (site,) = kerasnorm.swap_norms(
        keras.Model(inputs, layer(inputs, training=True)), "weight"
    ).report.sites
    assert site.verdict == "refused"


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_norm_in_a_recurrent_cell_is_refused_by_name(bidirectional):
    rnn = layers.RNN(tiny_code.NormCell(3, name="cell"), name="rnn")
    with keras.saving.custom_object_scope({"NormCell": tiny_code.NormCell}):
        layer = layers.Bidirectional(rnn, name="both") if bidirectional else rnn
    source = functional(
        layers.Dense(3, name="dense"), layers.BatchNormalization(name="bn"), layer, shape=(6, 4)
    )
    x = rows(source)
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "weight")
    verdicts = {site.name: site.verdict for site in swap.report.sites}
    assert verdicts.pop("bn") == "exact"
    assert set(verdicts.values()) == {"refused"}
    assert len(verdicts) == (2 if bidirectional else 1)
    assert_same(source, swap.model, x)


class Holder:
    """An object of the user's own."""

    def __init__(self, norm):
        self.norm = norm


class InAnObject(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.norm = layers.BatchNormalization(name="norm")
        self.holder = Holder(self.norm)

    def call(self, x):
        return self.holder.norm(x)


class InAClosure(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        scale = self.scale = layers.Dense(3, name="scale")
        norm = self.norm = layers.BatchNormalization(name="norm")
        self.head = lambda x: norm(scale(x))

    def call(self, x):
        return self.head(self.scale(x))


@pytest.mark.parametrize("cls", [InAnObject, InAClosure])
def test_code_that_holds_its_layers_elsewhere_too(cls):
    net = cls()
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    net(x)
    randomize(net, x)
    before = records(net)
    model = kerasnorm.swap_norms(net, "weight", strict=True).model
    assert records(net) == before
    assert_same(net, model, x)
    assert_shares_no_storage(net, model)


def test_code_with_a_layer_of_its_class_is_refused_by_name():
    scale = layers.Dense(3, name="scale")

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.scale, self.norm = scale, layers.BatchNormalization(name="norm")

        def call(self, x):
            return self.norm(scale(x))

    net = Net()
    net(np.ones((2, 3), "float32"))
    before = records(net)
    with pytest.raises(SwapError, match="whose copy calls the source's own 'scale'"):
        kerasnorm.swap_norms(net, "weight")
    assert records(net) == before


@keras.saving.register_keras_serializable("test_code")
class Remembers(tiny_code.Block):
    """A block that keeps what it was last called on."""

    def call(self, x, training=None):
        self.last = self.dense.last = x
        return super().call(x, training=training)


def test_what_code_keeps_of_its_calls_stays_as_it_was():
    source = functional(Remembers(4, name="block"))
    block = source.get_layer("block")
    source(rows(source))
    before = block.last
    kerasnorm.inspect_norms(source)
    assert block.last is before is block.dense.last
    del block.last
    kerasnorm.inspect_norms(source)
    assert not hasattr(block, "last")


@pytest.mark.parametrize(
    ("of", "becomes"), [("dense", "WeightNorm(Affine)"), ("norm", "WeightNorm(Dense)")]
)
def test_losses_that_code_adds_stay_what_they_are(of, becomes):
    class Penalized(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, name="dense")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, x):
            h = self.dense(x)
            y = self.norm(h)
            self.add_loss(keras.ops.mean(keras.ops.square(h if of == "dense" else y)))
            self.add_loss([keras.ops.ones(())])
            return y

    source, x = Penalized(), np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    source(x)
    randomize(source, x)
    attributes = set(vars(source))
    swap = kerasnorm.swap_norms(source, "weight")
    assert [site.becomes for site in swap.report.sites] == [becomes]
    assert set(vars(source)) == attributes
    assert_same(source, swap.model, x)
    np.testing.assert_allclose(swap.model.losses[0], source.losses[0], rtol=1e-5)
    assert len(swap.model.losses) == len(source.losses) == 2


@pytest.mark.filterwarnings("ignore::kerasnorm.FidelityWarning")
def test_code_with_other_layers_than_its_config_tells_is_copied_with_these():
    """As it is once a layer was put in the place of its BatchNorm."""
    source = functional(layers.Dense(4), tiny_code.Block(4, name="block"), shape=(4,))
    x = rows(source)
    randomize(source, x)
    swapped = kerasnorm.swap_norms(source, "layer", sites=lambda site: True).model
    again = kerasnorm.swap_norms(swapped, "weight").model
    assert_same(swapped, again, x)
    assert isinstance(again.get_layer("block").norm, kerasnorm.LayerNorm)
    data = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    history = kerasnorm.distill(swapped, source, data, epochs=1)
    assert history.after["loss"] <= history.before["loss"]
