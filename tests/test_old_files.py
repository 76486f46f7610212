"""Files of Keras 2 answer as they did there: trained models, each layer, odd and random ones."""

from __future__ import annotations

import json

import h5py
import keras
import numpy as np
import old_models
import pytest
from helpers import assert_close, material
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kerasnorm
from kerasnorm.loading.load import load
from kerasnorm.loading.safety import Limits

pytestmark = [
    # Keras 2 has its own use of NumPy and TensorFlow
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# What each of the trained models needs before it answers as it did.
REPAIRS = {
    "connect4": ["joined from 'model_best_config.json' and 'model_best_weight.h5'"],
    "mini_xception_fer2013.hdf5": [],
    "miniresnet.h5": ["`axis` was a list"],
    "miniresnetv2.h5": ["`axis` was a list"],
    "mnist_cnn.keras": [],
    "resnet8_cifar10.h5": ["`axis` was a list"],
    "speech_music_noise.hdf5": ["an input was put before the first layer ('reshape')"],
    "streaming_wakeword.h5": [
        "`groups` removed from DepthwiseConv2D",
        "`axis` was a list",
        "`scale` was the number 1",
    ],
    "toycar_autoencoder.h5": ["`axis` was a list"],
    "vww_mobilenet_v1.h5": ["`axis` was a list", "`groups` removed from DepthwiseConv2D"],
    "yamnet_256.h5": [
        "“/” in a layer's name became “_”",
        "`axis` was a list",
        "`groups` removed from DepthwiseConv2D",
    ],
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_trained_model_answers_as_it_did(name):
    model = load(material("models", name))
    with np.load(material("reference", f"{name.split('.')[0]}.npz")) as reference:
        expected = [reference[f"y{n}"] for n in range(len(reference.files) - 1)]
        answers = keras.tree.flatten(model.predict(reference["x"], verbose=0))
    assert len(answers) == len(expected)
    for answer, value in zip(answers, expected, strict=True):
        assert_close(answer, value)
    assert len(model.load_report) == len(REPAIRS[name]), model.load_report
    for said, expected_words in zip(model.load_report, REPAIRS[name], strict=True):
        assert expected_words in said


@pytest.mark.parametrize("name", ["model_best_config.json", "model_best_weight.h5"])
def test_either_file_of_a_pair_finds_the_other(name):
    model = kerasnorm.load_model(material("models", "connect4", name))
    assert len(model.outputs) == 2
    assert kerasnorm.load_report(material("models", "connect4", name))


def test_a_report_tells_the_repairs_of_the_file():
    model = kerasnorm.load_model(material("models", "streaming_wakeword.h5"))
    expected = kerasnorm.load_report(material("models", "streaming_wakeword.h5"))
    swap = kerasnorm.swap_norms(model, "weight")
    assert swap.report.to_dict()["repairs"] == expected
    assert kerasnorm.inspect_norms(model).to_dict()["repairs"] == expected


def assert_answers_stay(model, inputs, path):
    """A model of Keras 2 saved at the path and loaded answers as it does itself."""
    expected = model(inputs, training=False)
    loaded = kerasnorm.load_model(old_models.saved(model, path))
    answers = keras.tree.flatten(loaded(inputs, training=False))
    expected = keras.tree.flatten(expected)
    assert len(answers) == len(expected)
    for answer, value in zip(answers, expected, strict=True):
        assert_close(answer, value)
    return loaded


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize(("kind", "name"), old_models.CASES, ids=lambda value: value)
def test_every_layer(kind, name, suffix, tmp_path):
    model = old_models.of_layer(kind, name)
    assert_answers_stay(model, old_models.batch(kind), tmp_path / f"model.{suffix}")


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize("name", old_models.ODD)
def test_odd_models(name, suffix, tmp_path):
    model = old_models.ODD[name]()
    assert_answers_stay(model, old_models.inputs_of(model), tmp_path / f"model.{suffix}")


def assert_a_random_model_stays(tmp_path, draw):
    model = old_models.random_model(draw)
    suffix = draw(st.sampled_from(["h5", "keras"]))
    assert_answers_stay(model, old_models.inputs_of(model), tmp_path / f"model.{suffix}")


RANDOM = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(RANDOM, max_examples=6)
@given(st.data())
def test_random_models(tmp_path, data):
    assert_a_random_model_stays(tmp_path, data.draw)


@pytest.mark.slow
@settings(RANDOM, max_examples=150)
@given(st.data())
def test_many_random_models(tmp_path, data):
    assert_a_random_model_stays(tmp_path, data.draw)


def test_a_configuration_with_weights_beside_it(tmp_path):
    model = old_models.several()
    (tmp_path / "net.json").write_text(model.to_json())
    model.save_weights(tmp_path / "net.h5")
    (tmp_path / "other.h5").write_bytes((tmp_path / "net.h5").read_bytes())
    x = old_models.inputs_of(model)
    for name in ("net.json", "net.h5"):
        loaded = kerasnorm.load_model(tmp_path / name)
        for answer, value in zip(loaded(x), model(x), strict=True):
            assert_close(answer, value)
    (tmp_path / "net.json").unlink()
    with pytest.raises(kerasnorm.LoadError, match="holds weights only, and needs a configuration"):
        kerasnorm.load_model(tmp_path / "other.h5")


def test_the_compile_state_is_kept(tmp_path):
    model = old_models.several()
    model.compile(
        old_models.tk.optimizers.Adam(0.02, beta_1=0.8),
        ["mse", "mae", "mse"],
        loss_weights=[1, 2, 3],
    )
    for suffix in ("h5", "keras"):
        loaded = kerasnorm.load_model(old_models.saved(model, tmp_path / f"model.{suffix}"))
        assert loaded.compiled
        assert isinstance(loaded.optimizer, keras.optimizers.Adam)
        assert float(loaded.optimizer.learning_rate) == pytest.approx(0.02)
        assert loaded.optimizer.beta_1 == 0.8


def test_a_metric_is_not_the_loss_of_its_name(small):
    alike = {"class_name": "CosineSimilarity", "config": {"name": "alike", "axis": -1}}
    optimizer = {"class_name": "Adam", "config": {"lr": 0.001, "decay": 0.0}}
    training = {"loss": "mse", "metrics": [alike], "optimizer_config": optimizer}
    with h5py.File(small, "r+") as file:
        file.attrs["training_config"] = json.dumps(training)
    model = kerasnorm.load_model(small)
    x = old_models.batch("image")
    found = model.evaluate(x, model.predict(x, verbose=0), verbose=0, return_dict=True)
    assert found["alike"] == pytest.approx(1)


def test_what_became_of_it_saves_and_loads_again(tmp_path):
    loaded = kerasnorm.load_model(old_models.saved(old_models.several(), tmp_path / "model.h5"))
    loaded.save(tmp_path / "again.keras")
    again = kerasnorm.load_model(tmp_path / "again.keras")
    x = old_models.inputs_of(loaded)
    for answer, value in zip(again(x), loaded(x), strict=True):
        np.testing.assert_array_equal(answer, value)
    assert kerasnorm.load_report(tmp_path / "again.keras") == []


def test_an_old_file_swaps_and_folds(tmp_path):
    path = old_models.saved(old_models.nested_functional(), tmp_path / "model.h5")
    model = kerasnorm.load_model(path)
    swap = kerasnorm.swap_norms(model, "weight")
    assert {site.verdict for site in swap.report.sites} == {"exact"}
    x = old_models.inputs_of(model)
    assert_close(
        kerasnorm.fold_norms(swap.model)(x), model(x), factor=10
    )  # the folds' own rounding


def edited(path, change):
    """Change the configuration in an HDF5 file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)


def layer_of(config, class_name):
    return next(x for x in config["config"]["layers"] if x["class_name"] == class_name)["config"]


@pytest.fixture
def small(tmp_path):
    return old_models.saved(old_models.of_layer("image", "DepthwiseConv2D"), tmp_path / "m.h5")


def test_an_argument_that_would_change_the_answer_is_refused(small):
    edited(small, lambda config: layer_of(config, "DepthwiseConv2D").update(groups=2))
    with pytest.raises(
        kerasnorm.LoadError, match=r"layer 'depthwise_conv2d.*: .*groups=2"
    ) as caught:
        kerasnorm.load_model(small)
    assert "It holds a Functional model of Keras 2." in str(caught.value)
    assert "1 DepthwiseConv2D" in str(caught.value)


def test_a_layer_that_is_gone_is_named_with_what_the_file_holds(tmp_path):
    tk = old_models.tk
    model = tk.Sequential([tk.layers.LocallyConnected1D(3, 2, input_shape=(7, 4))])
    path = old_models.saved(model, tmp_path / "model.h5")
    with pytest.raises(kerasnorm.LoadError) as caught:
        kerasnorm.load_model(path)
    assert "LocallyConnected1D is no layer that this Keras knows" in str(caught.value)
    assert "Sequential model of Keras 2." in str(caught.value)


def test_unknown_regularizers_and_initializers_are_left_out_aloud(small):
    def change(config):
        layer_of(config, "Dense").update(
            kernel_regularizer={"class_name": "Mine", "config": {}},
            kernel_initializer={
                "class_name": "Constant",
                "config": {"value": 1, "dtype": "float32"},
            },
        )

    edited(small, change)
    repairs = kerasnorm.load_report(small)
    assert any("`kernel_regularizer` left out" in line for line in repairs)
    assert any("`dtype` removed from `kernel_initializer`" in line for line in repairs)


def test_a_name_and_a_suffix_that_mislead(small, tmp_path):
    for name in ("model", "model.keras", "model.json5"):
        copy = tmp_path / name
        copy.write_bytes(small.read_bytes())
        assert kerasnorm.load_model(copy).count_params() > 0


def test_an_input_that_only_the_first_kernel_tells(tmp_path):
    tk = old_models.tk
    layers = [tk.layers.Conv2D(4, 3, groups=2), tk.layers.BatchNormalization()]
    model = tk.Sequential([*layers, tk.layers.GlobalMaxPooling2D(), tk.layers.Dense(2)])
    model.build((None, 8, 8, 4))
    model = old_models.alive(model)
    path = old_models.saved(model, tmp_path / "model.h5")

    def forget(config):
        inner = config["config"]
        inner.pop("build_input_shape", None)
        inner["layers"] = [x for x in inner["layers"] if x["class_name"] != "InputLayer"]
        for stored in inner["layers"]:
            stored["config"].pop("batch_input_shape", None)

    edited(path, forget)
    x = old_models.batch("image")
    assert_close(kerasnorm.load_model(path)(x), model(x))
    said = "an input of shape (None, None, None, 4) was worked out from the first kernel"
    assert said in kerasnorm.load_report(path)


def test_a_class_of_its_own_that_is_a_graph(tmp_path):
    tk = old_models.tk

    class Trained(tk.Model):
        """A functional model with a training step of its own."""

    inputs = tk.Input((6,))
    model = old_models.alive(Trained(inputs, tk.layers.Dense(2)(inputs)))
    path = old_models.saved(model, tmp_path / "model.h5")
    x = old_models.batch("vector")
    assert_close(kerasnorm.load_model(path)(x), model(x))
    assert kerasnorm.load_report(path) == [
        "Trained, a class of its own, is built as its graph says"
    ]


@pytest.mark.parametrize("activation", ["LeakyReLU", "ReLU"])
def test_a_layer_as_an_activation(activation, tmp_path):
    tk = old_models.tk
    arguments = {"LeakyReLU": {"alpha": 0.2}, "ReLU": {"max_value": 0.5}}[activation]
    layer = getattr(tk.layers, activation)(**arguments)
    dense = tk.layers.Dense(4, input_shape=(6,), activation=layer)
    model = old_models.alive(tk.Sequential([dense]))
    x = old_models.batch("vector")
    for suffix in ("h5", "keras"):
        path = old_models.saved(model, tmp_path / f"model.{suffix}")
        assert_close(kerasnorm.load_model(path)(x), model(x))


def test_values_of_older_files(small):
    """Tuples and shapes with marks."""

    def change(config):
        layer_of(config, "DepthwiseConv2D").update(
            kernel_size={"class_name": "__tuple__", "items": [3, 3]}
        )
        layer_of(config, "InputLayer").update(
            batch_input_shape={"class_name": "TensorShape", "items": [None, 8, 8, 4]}
        )

    before = kerasnorm.load_model(small)
    edited(small, change)
    x = old_models.batch("image")
    assert_close(kerasnorm.load_model(small)(x), before(x))


def with_raw_operations(path):
    """x → 2·relu6(x + 1) as TensorFlow 2.1 stored it."""
    operations = [
        ("add", "AddV2", {"1": 1.0}, "input_1"),
        ("relu", "Relu6", {}, "add"),
        ("mul", "Mul", {"0": 2.0}, "relu"),
    ]
    layers = [
        {
            "class_name": "InputLayer",
            "name": "input_1",
            "config": {"batch_input_shape": [None, 6], "name": "input_1"},
            "inbound_nodes": [],
        }
    ]
    for name, op, constants, inbound in operations:
        node_def = json.dumps({"name": name, "op": op, "input": [inbound, f"{name}/y"]})
        layers.append(
            {
                "class_name": "TensorFlowOpLayer",
                "name": name,
                "config": {"name": name, "node_def": node_def, "constants": constants},
                "inbound_nodes": [[[inbound, 0, 0, {}]]],
            }
        )
    config = {"name": "model", "layers": layers, "input_layers": [["input_1", 0, 0]]}
    config["output_layers"] = [["mul", 0, 0]]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4-tf"
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": config})
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"input_1", b"add", b"relu", b"mul"]
        for name in ("input_1", "add", "relu", "mul"):
            weights.create_group(name).attrs["weight_names"] = np.zeros(0)
    return path


def test_operations_of_tensorflow_2_1(tmp_path):
    path = with_raw_operations(tmp_path / "model.h5")
    x = old_models.batch("vector") * 4
    assert_close(kerasnorm.load_model(path)(x), 2 * np.clip(x + 1, 0, 6))


def test_an_activation_that_is_not_known_is_named(small):
    edited(small, lambda config: layer_of(config, "Dense").update(activation="my_own"))
    with pytest.raises(kerasnorm.LoadError, match=r"'my_own'.*register_keras_serializable"):
        kerasnorm.load_model(small)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_lambda_of_keras_2_runs_only_if_it_is_allowed(suffix, tmp_path):
    tk, marker = old_models.tk, tmp_path / "it_ran"
    touch = f"__import__('pathlib').Path(r'{marker}').touch()"
    function = eval(f"lambda x: ({touch}, 2 * x)[1]")
    inputs = tk.Input((3,))
    model = tk.Model(inputs, tk.layers.Dense(2)(tk.layers.Lambda(function)(inputs)))
    path = old_models.saved(model, tmp_path / f"model.{suffix}")
    marker.unlink()
    for load_any in (kerasnorm.load_model, kerasnorm.load_report):
        with pytest.raises(kerasnorm.LoadError, match="--allow-custom-code"):
            load_any(path)
    assert not marker.exists()
    x = np.ones((2, 3), "float32")
    assert_close(kerasnorm.load_model(path, allow_custom_code=True)(x), model(x))
    assert marker.exists()


def test_the_report_says_what_the_file_holds(small):
    report = kerasnorm.load_report(small)
    assert report.holds.startswith("a Functional model of Keras 2.")
    assert report.to_dict() == {"holds": report.holds, "repairs": list(report), "warnings": []}
    assert "`groups` removed" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["repairs"] == report


@pytest.mark.parametrize("both", [True, False], ids=["both masked", "one masked"])
@pytest.mark.parametrize(
    "merge", ["Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"]
)
def test_masks_are_joined_as_they_were(merge, both, tmp_path):
    words = np.array([[1, 2, 3, 0, 0, 4, 0], [5, 0, 6, 7, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    others = np.roll(words, 2, axis=1)
    model = old_models.masked_merges(merge, both)
    path = tmp_path / "model.h5"
    loaded = assert_answers_stay(model, [words.astype("float32"), others.astype("float32")], path)
    assert any("masks are joined as in Keras 2" in line for line in kerasnorm.load_report(path))
    loaded.save(tmp_path / "again.keras")
    again = kerasnorm.load_model(tmp_path / "again.keras")
    for answer, value in zip(again([words, others]), loaded([words, others]), strict=True):
        np.testing.assert_array_equal(answer, value)


def test_a_layer_that_ended_a_mask_is_refused(tmp_path):
    tk = old_models.tk
    a = tk.Input((7,))
    x = tk.layers.Rescaling(0.5)(tk.layers.Embedding(9, 4, mask_zero=True)(a))
    path = old_models.saved(tk.Model(a, tk.layers.LSTM(3)(x)), tmp_path / "model.h5")
    with pytest.raises(kerasnorm.LoadError, match="Rescaling ended a mask in Keras 2"):
        kerasnorm.load_model(path)


def test_a_mask_passes_what_runs_as_in_training(tmp_path):
    tk = old_models.tk
    a, b = tk.Input((7,)), tk.Input((7,))
    x, y = (tk.layers.Embedding(9, 4, mask_zero=True)(words) for words in (a, b))
    x = tk.layers.GaussianNoise(1e-12)(x, training=True)  # of no effect, whenever it runs
    joined = tk.layers.Add()([x, y])  # whose mask is both masks
    model = old_models.alive(tk.Model([a, b], tk.layers.LSTM(3)(joined)))
    words = np.array([[1, 2, 0, 0, 4, 0, 0], [5, 0, 6, 7, 0, 0, 0]], "float32")
    assert_answers_stay(model, [words, np.roll(words, 2, axis=1)], tmp_path / "model.h5")


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_what_ran_as_in_training_still_does(suffix, tmp_path):
    model = old_models.in_training()
    path = old_models.saved(model, tmp_path / f"model.{suffix}")
    loaded = kerasnorm.load_model(path)
    x = old_models.batch("image", rows=8)
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert any("called with `training=True`" in line for line in kerasnorm.load_report(path))
    [site] = kerasnorm.swap_norms(loaded, "weight").report.sites
    assert site.verdict == "refused"


def test_a_random_crop_is_refused(tmp_path):
    tk = old_models.tk
    model = tk.Sequential([tk.Input((8, 8, 3)), tk.layers.RandomCrop(5, 6)])
    with pytest.raises(kerasnorm.LoadError, match="crops at inference in Keras 2"):
        kerasnorm.load_model(old_models.saved(model, tmp_path / "model.h5"))


def test_bilinear_samples_of_old_are_said(tmp_path):
    model = old_models.of_layer("image", "UpSampling2D")
    path = old_models.saved(model, tmp_path / "model.h5")
    assert kerasnorm.load_report(path).warnings == []
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = file["model_weights"].attrs["keras_version"] = "2.2.4"
    report = kerasnorm.load_report(path)
    assert "takes other sample points" in report.warnings[0]
    assert report.warnings[0] in str(report)
    with pytest.warns(UserWarning, match="other sample points"):
        model = kerasnorm.load_model(path)
    assert any("other sample points" in note for note in kerasnorm.inspect_norms(model).notes)


def test_a_model_of_a_class_of_its_own_inside_another(tmp_path):
    tk = old_models.tk

    @tk.saving.register_keras_serializable("mine")
    class Mine(tk.Model):
        """A functional model under another name."""

    a, b = tk.Input((6,)), tk.Input((6,))
    inner = Mine(a, tk.layers.Dense(4)(a))
    model = old_models.alive(tk.Model(b, tk.layers.Dense(2)(inner(b))))
    for suffix in ("h5", "keras"):
        assert_answers_stay(model, old_models.batch("vector"), tmp_path / f"model.{suffix}")


def test_json_in_json_and_several_versions_side_by_side(tmp_path):
    for number in (1, 2):
        model = old_models.alive(old_models.nested_functional(), number)
        (tmp_path / f"net.v{number}.json").write_text(json.dumps(model.to_json()))
        model.save_weights(tmp_path / f"net.v{number}.h5")
    x = old_models.inputs_of(model)
    assert_close(kerasnorm.load_model(tmp_path / "net.v2.json")(x), model(x))
    assert_close(kerasnorm.load_model(tmp_path / "net.v2.h5")(x), model(x))


@pytest.mark.parametrize("policy", ["infer", "float32_infer", "infer_with_float32_vars"])
def test_policies_of_tensorflow_1(policy, small):
    before = kerasnorm.load_model(small)
    name = {"class_name": "PolicyV1", "config": {"name": policy}}
    edited(small, lambda config: layer_of(config, "DepthwiseConv2D").update(dtype=name))
    x = old_models.batch("image")
    assert_close(kerasnorm.load_model(small)(x), before(x))


def test_a_merge_of_one(tmp_path):
    tk = old_models.tk
    a = tk.Input((6,))
    model = old_models.alive(tk.Model(a, tk.layers.Concatenate()([tk.layers.Dense(3)(a)])))
    assert_answers_stay(model, old_models.batch("vector"), tmp_path / "model.h5")


def test_metrics_that_keep_more_numbers_than_they_may_are_left_out(small):
    metric = {"class_name": "AUC", "config": {"num_thresholds": 30}}
    optimizer = {"class_name": "Adam", "config": {"lr": 0.001, "decay": 0.0}}
    training = {"loss": "mse", "metrics": [metric], "optimizer_config": optimizer}
    with h5py.File(small, "r+") as file:
        file.attrs["training_config"] = json.dumps(training)
    assert load(small, limits=Limits(numbers=30)).compiled
    refused = load(small, limits=Limits(numbers=29))
    assert not refused.compiled
    assert "keeps very many numbers" in str(refused.load_report)


def test_models_in_models_are_no_deeper_than_they_may_be(tmp_path):
    path = old_models.saved(old_models.nested_functional(), tmp_path / "model.h5")
    assert load(path, limits=Limits(models=4)).built
    with pytest.raises(kerasnorm.LoadError, match="too many models in models"):
        load(path, limits=Limits(models=2))


def test_weights_of_an_old_file_are_held_against_what_it_stores(small):
    assert load(small, limits=Limits(weights_floor=0, weights_ratio=1)).built
    with pytest.raises(kerasnorm.LoadError, match="asks for weights of"):
        load(small, limits=Limits(weights_floor=0, weights_ratio=0.5))


@pytest.mark.parametrize("what", ["loss", "metrics"])
def test_a_loss_or_metric_that_is_not_known_is_said(what, small):
    optimizer = {"class_name": "Adam", "config": {"lr": 0.001, "decay": 0.0}}
    training = {"loss": "mse", "metrics": ["accuracy"], "optimizer_config": optimizer}
    with h5py.File(small, "r+") as file:
        file.attrs["training_config"] = json.dumps(training)
    assert kerasnorm.load_model(small).compiled
    training[what] = "my_own" if what == "loss" else ["my_own"]
    with h5py.File(small, "r+") as file:
        file.attrs["training_config"] = json.dumps(training)
    assert not kerasnorm.load_model(small).compiled
    assert "training configuration was left out" in str(kerasnorm.load_report(small))


def graph_of(count, back_to_front=False):
    """A chain of activations as Keras 2 stored it."""
    layers = [{"class_name": "InputLayer", "name": "x0", "inbound_nodes": []}]
    layers[0]["config"] = {"batch_input_shape": [None, 3], "name": "x0"}
    for number in range(1, count):
        layers.append(
            {
                "class_name": "Activation",
                "name": f"x{number}",
                "config": {"name": f"x{number}", "activation": "tanh"},
                "inbound_nodes": [[[f"x{number - 1}", 0, 0, {}]]],
            }
        )
    ends = {"input_layers": [["x0", 0, 0]], "output_layers": [[f"x{count - 1}", 0, 0]]}
    return {"name": "chain", "layers": layers[::-1] if back_to_front else layers, **ends}


def with_graph(path, config):
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.3.1"
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": config})
        file.create_group("model_weights").attrs["layer_names"] = np.zeros(0, "S1")
    return path


def test_layers_in_any_order(tmp_path):
    models = [
        kerasnorm.load_model(with_graph(tmp_path / f"{turned}.h5", graph_of(60, turned)))
        for turned in (False, True)
    ]
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(models[0](x), models[1](x))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (["x0", 0, 7, {}], "has not so many outputs"),
        (["x0", -1, 0, {}], "does not load"),
        (["x0", 5, 0, {}], "come from nowhere"),
        (["gone", 0, 0, {}], "there is no layer 'gone'"),
        (["x2", 0, 0, {}], "come from nowhere, or from itself"),
    ],
)
def test_calls_that_lead_nowhere(reference, words, tmp_path):
    config = graph_of(4)
    config["layers"][2]["inbound_nodes"] = [[reference]]
    with pytest.raises(kerasnorm.LoadError, match=words):
        kerasnorm.load_model(with_graph(tmp_path / "model.h5", config))


@pytest.mark.parametrize("name", ["Conv2DTranspose", "Conv2D"])
def test_a_file_of_keras_2_that_does_not_say_so(name, tmp_path):
    tk = old_models.tk
    layer = getattr(tk.layers, name)(4, 3, input_shape=(8, 8, 4))  # as many in as out
    model = old_models.alive(tk.Sequential([layer]))
    path = old_models.saved(model, tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"], file["model_weights"].attrs["keras_version"]
    x = old_models.batch("image")
    assert_close(kerasnorm.load_model(path)(x), model(x))
