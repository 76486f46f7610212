"""Where a norm of each sample does harm, weight norm stands unless the site was named."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fidelity import assert_exact, randomize

import kerasnorm
from kerasnorm.cli.main import main

layers = keras.layers
BN = layers.BatchNormalization


def functional(end, units=6, front=lambda x: x):
    inputs = keras.Input((5,))
    x = layers.ReLU()(BN(name="first")(layers.Dense(8)(front(inputs))))
    return keras.Model(inputs, end(BN(name="last")(layers.Dense(units)(x))))


def nested():
    inputs = keras.Input((5,))
    return keras.Model(inputs, functional(layers.Softmax())(layers.Dense(5)(inputs)))


class Code(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.last = layers.Dense(6), BN(name="last")

    def call(self, x):
        return keras.ops.softmax(self.last(self.dense(x)))


def code():
    model = Code()
    model(np.zeros((1, 5), "float32"))
    return model


BEFORE = {
    "softmax": lambda: functional(layers.Softmax()),
    "activation": lambda: functional(layers.Activation("softmax")),
    "sigmoid": lambda: functional(layers.Activation("sigmoid")),
    "operation": lambda: functional(keras.ops.sigmoid),
    "then dropout": lambda: functional(lambda x: layers.Dropout(0.5)(layers.Softmax()(x))),
    "nested": nested,
    "code": code,
}
NOT_BEFORE = {
    "numbers": lambda: functional(layers.Identity()),
    "relu": lambda: functional(layers.ReLU()),
    "a layer in between": lambda: functional(layers.Dense(3, activation="softmax")),
    "a part of it": lambda: functional(lambda x: layers.Softmax()(x[:, :4])),
}


def data():
    return np.random.default_rng(0).normal(size=(120, 5)).astype("float32")


def last_of(report):
    (site,) = (site for site in report.sites if site.name.endswith("last"))
    return site


@pytest.mark.parametrize("target", ["layer", "cosine"])
@pytest.mark.parametrize("case", BEFORE)
def test_logits_keep_their_size(case, target, closed_form):
    source = BEFORE[case]()
    randomize(source, data())
    swap = kerasnorm.swap_norms(source, target, data())
    site = last_of(swap.report)
    assert (site.verdict, site.becomes, site.target) == ("exact", "WeightNorm(Dense)", target)
    assert "how sure the model is" in site.reason
    assert kerasnorm.inspect_norms(source).to_dict()["counts"][target]["WeightNorm(Dense)"] == 1
    named = kerasnorm.swap_norms(source, target, data(), sites=[site.name])
    assert last_of(named.report).verdict == "calibrated"
    by_name = kerasnorm.swap_norms(source, {site.name: target}, data())
    assert last_of(by_name.report).verdict == "calibrated"


@pytest.mark.parametrize("target", ["layer", "cosine"])
@pytest.mark.parametrize("case", NOT_BEFORE)
def test_other_sites_become_what_was_asked_for(case, target, closed_form):
    source = NOT_BEFORE[case]()
    randomize(source, data())
    assert last_of(kerasnorm.swap_norms(source, target, data()).report).verdict == "calibrated"


@pytest.mark.parametrize(("units", "becomes"), [(3, "WeightNorm(Dense)"), (4, "LayerNorm")])
def test_vectors_of_few_channels_are_not_normalized(units, becomes):
    source = functional(layers.ReLU(), units)
    swap = kerasnorm.swap_norms(source, "layer")
    assert last_of(swap.report).becomes == becomes


def test_maps_of_few_channels_are_normalized_as_a_whole():
    inputs = keras.Input((6, 6, 3))
    source = keras.Model(inputs, layers.ReLU()(BN(name="last")(layers.Conv2D(2, 3)(inputs))))
    assert last_of(kerasnorm.swap_norms(source, "layer").report).becomes == "LayerNorm"


def test_a_model_that_is_all_logits_is_exact():
    inputs = keras.Input((5,))
    source = keras.Model(inputs, layers.Softmax()(BN(name="last")(layers.Dense(2)(inputs))))
    randomize(source, data())
    swap = kerasnorm.swap_norms(source, "layer")
    assert_exact(source, swap, data())


def test_one_batch_norm_in_several_places_of_code_becomes_one_thing():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.last = layers.Dense(5), BN(name="last")

        def call(self, x):
            return keras.ops.softmax(self.last(keras.ops.relu(self.last(self.dense(x)))))

    source = Twice()
    source(data())
    sites = kerasnorm.swap_norms(source, "layer").report.sites
    assert {site.becomes for site in sites} == {"LayerNorm"}


def seen_through(layer):
    return lambda: functional(layers.ReLU(), front=layer)


def with_backbone(front):
    backbone = functional(layers.ReLU())
    inputs = keras.Input((5,))
    return keras.Model(inputs, backbone(front(inputs)))


def on_two_inputs():
    a, b = keras.Input((2,)), keras.Input((3,))
    return keras.Model([a, b], functional(layers.ReLU())(layers.Concatenate()([a, b])))


def on_the_input_itself():
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="relu")(BN(name="first")(inputs))
    return keras.Model(inputs, BN(name="last")(layers.Dense(6)(x)))


class TwoSites(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.first = layers.Dense(8), BN(name="first")
        self.head, self.last = layers.Dense(6), BN(name="last")

    def call(self, x):
        return self.last(self.head(keras.ops.relu(self.first(self.dense(x)))))


def two_sites_in_code():
    model = TwoSites()
    model(np.zeros((1, 5), "float32"))
    return model


AT_INPUT = {
    "dense": lambda: functional(layers.ReLU()),
    "rescaled": seen_through(layers.Rescaling(1 / 255)),
    "standardized": seen_through(layers.Normalization(mean=[0.0] * 5, variance=[1.0] * 5)),
    "dropout": seen_through(layers.Dropout(0.1)),
    "an operation": seen_through(lambda x: x * 2.0),
    "backbone": lambda: with_backbone(lambda x: x),
    "two inputs": on_two_inputs,
    "code": two_sites_in_code,
}


def doubled_often(x):
    for _ in range(40):  # 2⁴⁰ ways lead back to the input
        x = layers.Add()([x, x])
    return x


AT_INPUT["by many ways"] = seen_through(doubled_often)
NOT_AT_INPUT = {
    "behind a layer with weights": seen_through(layers.Dense(5)),
    "backbone behind one": lambda: with_backbone(layers.Dense(5)),
    "beside one": seen_through(lambda x: layers.Concatenate()([x, layers.Dense(5)(x)])),
}


def first_of(report):
    (site,) = (site for site in report.sites if site.name.endswith("first"))
    return site


def inputs_for(model):
    shapes = [tensor.shape[1:] for tensor in keras.tree.flatten(getattr(model, "inputs", [data()]))]
    given = [np.random.default_rng(0).normal(size=(120, *shape)) for shape in shapes]
    return given if len(given) > 1 else given[0]


@pytest.mark.parametrize("target", ["layer", "cosine"])
@pytest.mark.parametrize("case", AT_INPUT)
def test_the_size_of_the_input_is_kept(case, target, closed_form):
    source = AT_INPUT[case]()
    swap = kerasnorm.swap_norms(source, target, inputs_for(source))
    site = first_of(swap.report)
    assert (site.verdict, site.becomes, site.target) == ("exact", "WeightNorm(Dense)", target)
    assert "reads the model's input" in site.reason
    assert last_of(swap.report).verdict == "calibrated"
    named = kerasnorm.swap_norms(source, target, inputs_for(source), sites=lambda record: True)
    assert first_of(named.report).verdict == "calibrated"


@pytest.mark.parametrize("case", NOT_AT_INPUT)
def test_a_site_behind_weights_does_not_read_the_input(case, closed_form):
    source = NOT_AT_INPUT[case]()
    assert first_of(kerasnorm.swap_norms(source, "layer").report).becomes == "LayerNorm"


def test_a_batch_norm_on_the_input_does_not_become_a_cosine_of_it(closed_form):
    swap = kerasnorm.swap_norms(on_the_input_itself(), "cosine", data())
    assert first_of(swap.report).becomes == "WeightNorm(Affine)"


@pytest.mark.parametrize("target", ["layer", "cosine"])
def test_a_model_with_no_other_site_gets_the_norm_that_was_asked_for(target, closed_form):
    inputs = keras.Input((5,))
    source = keras.Model(inputs, layers.ReLU()(BN(name="first")(layers.Dense(8)(inputs))))
    assert first_of(kerasnorm.swap_norms(source, target, data()).report).verdict == "calibrated"


def test_the_last_line_of_the_command_says_which_norms_there_are(tmp_path, capsys):
    functional(layers.ReLU()).save(tmp_path / "model.keras")
    assert main(["swap", str(tmp_path / "model.keras"), "--to", "layer"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "model.keras: 1 of 2 BatchNorm calls to layer norm, 1 to weight norm" in said
    assert "answers not measured (--data of 100 samples measures them)" in said


def test_what_is_no_norm_does_not_count_as_one(tmp_path, capsys):
    inputs = keras.Input((8, 8, 3))
    y = BN()(layers.Conv2D(1, 3)(inputs))  # of one channel a norm of each step leaves nothing
    y = BN()(layers.Conv2D(16, 3)(layers.ReLU()(y)))
    keras.Model(inputs, layers.ReLU()(y)).save(tmp_path / "model.keras")
    assert main(["swap", str(tmp_path / "model.keras"), "--to", "group"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "model.keras: 1 of 2 BatchNorm calls to group norm, 1 to an affine map" in said


def test_a_warning_is_in_the_last_line_and_fails_under_strict(tmp_path, capsys):
    inputs = keras.Input((8, 8, 3))
    y = layers.ReLU()(BN()(layers.Conv2D(16, 3)(inputs)))
    keras.Model(inputs, y).save(tmp_path / "model.keras")
    swap = ["swap", str(tmp_path / "model.keras"), "--to", "group", "--groups", "4"]
    swap += ["--output", str(tmp_path / "out.keras")]
    assert main([*swap, "--strict"]) == 1
    assert "--strict allows no warning" in capsys.readouterr().err
    assert not (tmp_path / "out.keras").exists()
    assert main(swap) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(", 1 warning")


def of_uneven_channels(largest, units=16, shape=(8, 8, 3)):
    """A net whose second BatchNorm has γ from 1/largest to largest."""
    inputs = keras.Input(shape)
    x = layers.ReLU()(BN(name="first")(layers.Conv2D(8, 3)(inputs)))
    norm = BN(name="uneven")
    x = layers.ReLU()(norm(layers.Conv2D(units, 3)(x)))
    x = layers.ReLU()(BN(name="last")(layers.Conv2D(8, 3)(x)))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    norm.gamma.assign(np.geomspace(1 / largest, largest, units))
    return model


@pytest.mark.parametrize(("largest", "harmful"), [(1.0, False), (1.5, False), (30.0, True)])
def test_a_layer_norm_that_a_few_channels_decide(largest, harmful):
    source = of_uneven_channels(largest)
    (site,) = (s for s in kerasnorm.swap_norms(source, "layer").report.sites if s.name == "uneven")
    assert site.becomes == ("WeightNorm(Conv2D)" if harmful else "LayerNorm")
    named = kerasnorm.swap_norms(source, "layer", sites=["uneven"]).report.sites
    assert next(s for s in named if s.name == "uneven").becomes == "LayerNorm"
    if harmful:
        squares = np.geomspace(1 / largest, largest, 16) ** 2 / (1 + 1e-3)
        deciding = squares.sum() ** 2 / (squares**2).sum()
        assert f"{deciding:.1f} of 16 channels decide" in site.reason


def test_means_that_no_sample_changes_count_for_a_layer_norm():
    source = of_uneven_channels(30.0)
    # beside these, what varies is little
    source.get_layer("uneven").beta.assign(np.where(np.arange(16) % 2, 200.0, -200.0))
    (site,) = (s for s in kerasnorm.swap_norms(source, "layer").report.sites if s.name == "uneven")
    assert site.becomes == "LayerNorm"
