"""`export_onnx`: right in ONNX Runtime, named as the model, or refused with nothing written."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from helpers import TRAINED, large_ones_slow, loaded, material
from keras import layers
from onnx import numpy_helper
from tf2onnx import optimizer

import kerasnorm
from kerasnorm.compare.measures import relative_difference
from kerasnorm.compare.tolerances import coarsest_dtype
from kerasnorm.errors import ExportError
from kerasnorm.layers import Affine, LayerNorm, WeightNorm
from kerasnorm.onnx import check as checks
from kerasnorm.onnx import export
from kerasnorm.onnx.export import export_onnx
from kerasnorm.onnx.frozen_graph import freeze
from kerasnorm.onnx.io_spec import signature_of

OLD = b"what was there before"


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def names_and_shapes(values):
    return {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in values
    }


def inputs_of(path):
    return names_and_shapes(onnx.load(path).graph.input)


def outputs_of(path):
    return names_and_shapes(onnx.load(path).graph.output)


def run(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def constant_arithmetic(path):
    """Operations that compute the same numbers at every run."""
    graph = onnx.load(path).graph
    constant = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if all(not name or name in constant for name in node.input):
            found.append(node.op_type)
            constant.update(node.output)
    return found


def image_net():
    """Layers of every kind that has a fault of its own below; names that invite confusion."""
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(
        name="bn", gamma_initializer="random_normal", beta_initializer="random_normal"
    )(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(4, 3, padding="same", name="conv_1")(x)
    y = layers.LayerNormalization(name="ln", gamma_initializer="random_normal")(y)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, y]))
    x = layers.Dense(6, activation="relu", name="dense")(x)
    return keras.Model(image, layers.Dense(5, name="dense_1")(x), name="image_net")


def dense_net():
    return keras.Sequential(
        [keras.Input((4,), name="x"), layers.Dense(2, name="head")], name="dense_net"
    )


# Real models


@pytest.mark.parametrize("file", large_ones_slow(TRAINED))
def test_real_models_agree_to_1e_5(file, path):
    model = loaded(file)
    result = export_onnx(model, path)
    assert result.max_difference <= 1e-5
    assert constant_arithmetic(path) == []
    if file.startswith("fashion"):
        return
    with np.load(material("reference", f"{file.split('.')[0]}.npz")) as stored:
        x, expected = stored["x"], [stored[f"y{n}"] for n in range(len(stored.files) - 1)]
    assert export_onnx(model, path, inputs=x).max_difference <= 1e-5
    answers = list(run(path, {next(iter(inputs_of(path))): x}).values())
    for answer, value in zip(answers, expected, strict=True):
        # Against the stored answer of another runtime, whose own rounding adds to ours.
        np.testing.assert_allclose(answer, value, rtol=0, atol=3e-5 * np.abs(value).max())


# Names, structures, shapes


def test_what_is_returned_and_what_the_file_says_of_itself(path):
    result = export_onnx(dense_net(), path)
    assert result.path == path
    assert result.opset == 17
    assert result.max_difference <= 1e-5
    assert result.op_counts == {"MatMul": 1}
    file = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 17)]
    assert (file.producer_name, file.producer_version) == ("kerasnorm", kerasnorm.__version__)
    assert file.graph.name == "dense_net"
    assert file.doc_string == (
        f"Keras model 'dense_net' (Sequential), exported by kerasnorm {kerasnorm.__version__}"
    )
    properties = {entry.key: entry.value for entry in file.metadata_props}
    assert properties["source_model"] == "dense_net"
    assert properties["keras_version"] == keras.__version__
    assert "swap_report" not in properties


def stored_report(path):
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads(properties["swap_report"]) if "swap_report" in properties else None


def test_a_swap_brings_its_report(path, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2), layers.BatchNormalization()])
    swap = kerasnorm.swap_norms(model, "weight")
    report = json.loads(json.dumps(swap.report.to_dict()))
    export_onnx(swap, path)
    assert stored_report(path) == report
    swap.model.save(tmp_path / "swapped.keras")
    loaded_again = keras.models.load_model(tmp_path / "swapped.keras")
    for swapped in (swap.model, loaded_again):
        export_onnx(swapped, path)
        assert stored_report(path) is None
        export_onnx(swapped, path, report=swap.report)
        assert stored_report(path) == report


def test_a_report_that_is_given_goes_before_that_of_the_swap(path):
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    swap = kerasnorm.swap_norms(model, "weight")
    other = kerasnorm.inspect_norms(model)
    export_onnx(swap, path, report=other)
    assert stored_report(path) == json.loads(json.dumps(other.to_dict()))


def test_the_result_cannot_be_changed(path):
    result = export_onnx(dense_net(), path)
    with pytest.raises(AttributeError):
        result.opset = 18


def test_inputs_and_outputs_are_named_after_the_layers(path):
    export_onnx(dense_net(), path)
    assert inputs_of(path) == {"x": ["batch", 4]}
    assert outputs_of(path) == {"head": ["batch", 2]}


def test_a_sequential_model_built_by_its_first_call_keeps_a_free_batch(path):
    model = keras.Sequential([layers.Dense(2, name="head")])
    model(np.ones((2, 4), "float32"))
    export_onnx(model, path)
    assert list(inputs_of(path).values()) == [["batch", 4]]
    assert outputs_of(path) == {"head": ["batch", 2]}


def test_dicts_keep_their_keys(path):
    a, b = keras.Input((4,), name="a"), keras.Input((5,), name="b")
    x = layers.Concatenate()([layers.Dense(3)(a), layers.Dense(3)(b)])
    model = keras.Model(
        {"b": b, "a": a},
        {"score": layers.Dense(1, name="last")(x), "features": layers.Dense(2)(x)},
    )
    export_onnx(model, path)
    assert inputs_of(path) == {"a": ["batch", 4], "b": ["batch", 5]}
    assert outputs_of(path) == {"features": ["batch", 2], "score": ["batch", 1]}
    feeds = {"a": np.ones((2, 4), "float32"), "b": np.ones((2, 5), "float32")}
    expected = model(feeds, training=False)
    for name, answer in run(path, feeds).items():
        np.testing.assert_allclose(answer, expected[name], atol=1e-6)


def test_several_inputs_and_outputs_in_order_each_under_a_name_of_its_own(path):
    a, b = keras.Input((4,), name="first one"), keras.Input((5,), name="b")
    x = layers.Concatenate(name="joined")([a, b])
    y = layers.Dense(1, name="score")(x)
    export_onnx(keras.Model([b, a], [y, y, x, a]), path)
    assert list(inputs_of(path)) == ["b", "first one"]
    assert list(outputs_of(path)) == ["score", "score_1", "joined", "first one_1"]


def test_a_model_that_hands_its_input_through(path):
    x = keras.Input((4,), name="x")
    export_onnx(keras.Model(x, x), path)
    assert inputs_of(path) == {"x": ["batch", 4]}
    assert outputs_of(path) == {"x_1": ["batch", 4]}


def test_free_height_and_width_stay_free(path):
    model = image_net()
    export_onnx(model, path)
    assert inputs_of(path) == {"image": ["batch", "image_axis_1", "image_axis_2", 3]}
    for shape in [(1, 7, 9, 3), (2, 40, 24, 3)]:
        x = np.random.default_rng(0).standard_normal(shape).astype("float32")
        np.testing.assert_allclose(
            run(path, {"image": x})["dense_1"], model(x, training=False), atol=1e-5
        )


@pytest.mark.parametrize("recurrent", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_free_time_stays_free(recurrent, path):
    model = keras.Sequential(
        [keras.Input((None, 3), name="x"), recurrent(4, return_sequences=True), layers.Dense(2)]
    )
    export_onnx(model, path)
    assert inputs_of(path) == {"x": ["batch", "x_axis_1", 3]}
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
    [answer] = run(path, {"x": x}).values()
    np.testing.assert_allclose(answer, model(x, training=False), atol=1e-6)


def test_an_embedding_is_checked_on_tokens_of_its_vocabulary(path):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(7, 4)(tokens))
    export_onnx(keras.Model(tokens, layers.Dense(2)(x)), path)
    assert inputs_of(path) == {"tokens": ["batch", "tokens_axis_1"]}


class Two(keras.Model):
    """A model that is code, with two answers."""

    def __init__(self):
        super().__init__(name="two")
        self.left, self.right = layers.Dense(3), layers.Dense(2)

    def call(self, features):
        return {"left": self.left(features), "right": self.right(features)}


class Pair(keras.Model):
    """A model that is code, of two arguments."""

    def __init__(self):
        super().__init__(name="pair")
        self.left, self.right = layers.Dense(3), layers.Dense(3)

    def call(self, query, value):
        return self.left(query) + self.right(value)


def test_a_model_that_is_code_is_known_by_its_first_call(path):
    model = Two()
    model(np.ones((2, 4), "float32"))
    export_onnx(model, path)
    assert inputs_of(path) == {"features": ["batch", 4]}
    assert outputs_of(path) == {"left": ["batch", 3], "right": ["batch", 2]}


def test_a_model_of_several_arguments_is_known_by_its_inputs(path):
    model = Pair()
    x = np.ones((3, 4), "float32")
    model(x, x)
    with pytest.raises(ExportError, match=r"takes the arguments \['query', 'value'\].*`inputs=`"):
        export_onnx(model, path)
    export_onnx(model, path, inputs=[x, 2 * x])
    assert list(inputs_of(path)) == ["query", "value"]


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision(dtype, path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.GlobalAveragePooling2D(dtype=dtype),
            layers.Dense(3, dtype="float32"),
        ]
    )
    assert coarsest_dtype(model) == dtype.removeprefix("mixed_")
    export_onnx(model, path)


def test_constants_inside_a_layer_are_no_inputs(path):
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0], name="scaled")(image)
    export_onnx(keras.Model(image, x), path)
    assert inputs_of(path) == {"image": ["batch", 4, 4, 3]}


@pytest.mark.parametrize("activation", ["gelu", "silu", "elu", "softplus", "hard_swish", "mish"])
def test_activations(activation, path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, activation=activation)])
    assert export_onnx(model, path).max_difference <= 1e-5


def test_grouped_convolutions(path):
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(8, 3, groups=2)])
    assert export_onnx(model, path).op_counts["Conv"] == 1


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_opsets(opset, path):
    assert export_onnx(image_net(), path, opset=opset).opset == opset
    assert onnx.load(path).opset_import[0].version == opset


# Norms


def test_weight_norm_is_gone(path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            WeightNorm(layers.Conv2D(4, 3)),
            WeightNorm(Affine()),
            layers.ReLU(),
            layers.Flatten(),
            WeightNorm(layers.Dense(2)),
        ]
    )
    before = [np.array(value) for value in model.get_weights()]
    result = export_onnx(model, path)
    assert result.max_difference <= 1e-5
    assert constant_arithmetic(path) == []
    assert not {"Sqrt", "ReduceSum", "Div", "BatchNormalization"} & set(result.op_counts)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weight_norm_is_gone_from_a_model_that_is_code(path):
    class Code(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = WeightNorm(layers.Dense(3, use_bias=False))

        def call(self, x):
            return self.dense(x)

    model = Code()
    model(np.ones((2, 4), "float32"))
    assert export_onnx(model, path).op_counts == {"MatMul": 1}


def test_batch_normalization_runs_on_stored_statistics(path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.BatchNormalization()])
    model.layers[0].moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    export_onnx(model, path)
    [answer] = run(path, {"x": np.zeros((2, 4), "float32")}).values()
    np.testing.assert_allclose(answer[0], -np.arange(1, 5) / np.sqrt(1.001), rtol=1e-5)


# The check


def perturbed(monkeypatch, change):
    """Makes the conversion give a model that `change` was applied to."""
    convert = export.to_onnx

    def wrong(*args):
        proto = convert(*args)
        change(proto)
        return proto

    monkeypatch.setattr(export, "to_onnx", wrong)


def perturb_initializer(scope, factor=1.01):
    def change(proto):
        found = [t for t in proto.graph.initializer if re.match(scope, t.name)]
        assert len(found) == 1, [t.name for t in proto.graph.initializer]
        [tensor] = found
        wrong = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))

    return change


@pytest.mark.parametrize(
    ("scope", "origin"),
    [
        # A convolution and the normalization after it are one operation in the file.
        ("image_net_1/conv_1/", "one of 'conv', 'bn', 'relu', which the file does not tell apart"),
        ("image_net_1/bn_1/", "one of 'conv', 'bn', 'relu', which the file does not tell apart"),
        ("image_net_1/conv_1_2/convolution", "'conv_1'"),
        # In the first attempt, and in the second, with the layer's own formula.
        ("image_net_1/ln_1/(strided_slice|Reshape):", "'ln'"),
        ("image_net_1/dense_1/Cast", "one of 'pool', 'dense', which the file does not tell apart"),
        ("image_net_1/dense_1_2/Cast", "'dense_1'"),
    ],
)
def test_the_error_names_the_layer_where_the_fault_arises(scope, origin, path, monkeypatch):
    model = image_net()
    model.get_layer("dense").bias.assign(np.arange(6.0))
    perturbed(monkeypatch, perturb_initializer(scope))
    path.write_bytes(OLD)
    with pytest.raises(
        ExportError,
        match=r"^model 'image_net': ONNX Runtime and Keras differ in output 'dense_1' by "
        rf"\S+ of \S+, its scale; allowed is 1e-05\. The first layer whose output "
        rf"differs is {origin}\. No file was written",
    ):
        export_onnx(model, path)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_difference_that_a_later_layer_undoes_is_not_blamed(path, monkeypatch):
    x = keras.Input((6,), name="x")
    y = layers.LayerNormalization(epsilon=1e-12, name="ln")(
        layers.Dense(6, use_bias=False, name="doubled")(x)
    )
    model = keras.Model(x, layers.Dense(2, name="last")(y), name="net")
    harmless = perturb_initializer("net_1/doubled_1/Cast", 2)
    harmful = perturb_initializer("net_1/last_1/Cast", 1.01)
    perturbed(monkeypatch, lambda proto: (harmless(proto), harmful(proto)))
    with pytest.raises(ExportError, match=r"The first layer whose output differs is 'last'"):
        export_onnx(model, path)


def test_another_shape_is_an_error(path, monkeypatch):
    def reshape(proto):
        proto.graph.node[0].output[0] = "raw"
        proto.graph.node.append(onnx.helper.make_node("Transpose", ["raw"], ["head"]))

    perturbed(monkeypatch, reshape)
    text = r"Output 'head' has the shape \(2, 1\) in ONNX Runtime and \(1, 2\) in Keras"
    with pytest.raises(ExportError, match=text):
        export_onnx(dense_net(), path)


def test_the_worst_output_is_named(path, monkeypatch):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, [layers.Dense(3, name="good")(x), layers.Dense(3, name="bad")(x)])
    scope = f"{model.name}_1/bad_1/"
    perturbed(monkeypatch, perturb_initializer(scope))
    with pytest.raises(ExportError, match=r"in output 'bad' by 0\.01.*differs is 'bad'"):
        export_onnx(model, path)


def test_a_looser_tolerance_accepts_and_tells(path, monkeypatch):
    perturbed(monkeypatch, perturb_initializer("dense_net_1/head_1/"))
    result = export_onnx(dense_net(), path, tolerance=0.02)
    assert 0.009 < result.max_difference < 0.011


def test_a_tighter_tolerance_refuses(path):
    with pytest.raises(ExportError, match=r"allowed is 1e-12"):
        export_onnx(image_net(), path, tolerance=1e-12)


def test_a_model_that_amplifies_rounding_is_not_held_to_what_it_cannot_keep(path, monkeypatch):
    # Every answer is off by 1e-4, ten times the tolerance.
    model = dense_net()
    perturbed(monkeypatch, perturb_initializer("dense_net_1/head_1/", 1 + 1e-4))
    with pytest.raises(ExportError, match=r"allowed is 1e-05"):
        export_onnx(model, path)
    monkeypatch.setattr(checks, "rounding_sensitivity", lambda *args: 1e-4 / 9)
    with pytest.raises(ExportError, match=r"allowed is 8\.89e-05"):
        export_onnx(model, path)
    monkeypatch.setattr(checks, "rounding_sensitivity", lambda *args: 1e-4 / 7)
    assert export_onnx(model, path).max_difference == pytest.approx(1e-4, rel=0.01)
    with pytest.raises(ExportError, match=r"allowed is 1e-05"):
        export_onnx(model, path, tolerance=1e-5)
    monkeypatch.setattr(checks, "rounding_sensitivity", lambda *args: 1.0)
    perturbed(monkeypatch, perturb_initializer("dense_net_1/head_1/", 1.01))
    with pytest.raises(ExportError, match=r"allowed is 0\.001"):
        export_onnx(model, path)


def test_rounding_sensitivity_is_how_far_the_answer_moves():
    x = np.linspace(1, 2, 8, dtype="float32").reshape(2, 4)
    unit = np.finfo("float32").eps

    def sensitivity(*stack):
        model = keras.Sequential([keras.Input((4,)), *stack])
        return checks.rounding_sensitivity(freeze(model, signature_of(model), 17), [x])

    assert unit / 4 < sensitivity(layers.ReLU()) < 2 * unit
    # 1000 x - 1500 loses a digit or two for x near 1.5.
    assert 2 * unit < sensitivity(layers.Rescaling(1000.0, offset=-1500.0)) < 20 * unit
    # Zeros do not move.
    assert sensitivity(layers.Rescaling(0.0)) == 0


def test_the_largest_of_several_moves_counts(monkeypatch):
    found = []
    for moves in (1, 3, 10):
        monkeypatch.setattr(checks, "MOVES", moves)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="ones")])
        x = np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4)
        found.append(checks.rounding_sensitivity(freeze(model, signature_of(model), 17), [x]))
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_answers_that_are_not_finite_are_an_error(path, monkeypatch):
    def spoil(proto):
        for tensor in proto.graph.initializer:
            nan = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(nan, tensor.name))

    perturbed(monkeypatch, spoil)
    with pytest.raises(ExportError, match=r"differ in output 'head' by nan"):
        export_onnx(dense_net(), path)
    assert not path.exists()


def test_a_model_whose_own_answer_is_not_finite_is_an_error(path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.ops.log(x))
    with pytest.raises(ExportError, match=r"own answer .* is not finite.*Pass `inputs=`"):
        export_onnx(model, path)
    export_onnx(model, path, inputs=np.ones((2, 4)))


def test_the_whole_of_the_given_inputs_is_used(path, monkeypatch):
    # Wrong for one row only: the last of 100.
    def clip(proto):
        for node in proto.graph.node:
            node.output[:] = ["raw" if name == "relu" else name for name in node.output]
        limit = onnx.helper.make_tensor("limit", onnx.TensorProto.FLOAT, [], [50.0])
        proto.graph.initializer.append(limit)
        proto.graph.node.append(onnx.helper.make_node("Min", ["raw", "limit"], ["relu"]))

    model = keras.Sequential([keras.Input((4,), name="x"), layers.ReLU(name="relu")])
    perturbed(monkeypatch, clip)
    x = np.ones((100, 4), "float32")
    export_onnx(model, path, inputs=x)
    x[-1] = 100
    with pytest.raises(ExportError, match=r"differ in output 'relu' by 0\.5"):
        export_onnx(model, path, inputs={"x": x})


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([True, False], [True, True], 1.0),
        ([[1.0]], [1.0], np.inf),
        ([], [], 0.0),
        ([1.0, 2.0], [1.0, np.nan], np.nan),
    ],
)
def test_the_difference_is_relative_to_the_scale_of_the_output(reference, answer, expected):
    relative, _ = relative_difference(np.array(reference), np.array(answer))
    np.testing.assert_equal(relative, expected)


# Refusals


class Decompose(layers.Layer):
    """Something ONNX has no operator for."""

    def call(self, x):
        return tf.linalg.qr(x)[0]


def unbuilt():
    return keras.Sequential([layers.Dense(2)], name="unbuilt")


def never_called():
    return Two()


def unsupported():
    return keras.Sequential([keras.Input((4, 4)), Decompose(name="qr")], name="net")


class LiveNorm(layers.Layer):
    """A BatchNorm whose batch decides, and moves its statistics, at inference too."""

    def build(self, shape):
        self.norm = layers.BatchNormalization()
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x, training=True)


class Counting(layers.Layer):
    """Says how often it was called."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign(self.count + 1)
        return x * self.count


@pytest.mark.parametrize("layer", [LiveNorm, Counting])
def test_the_check_leaves_what_calls_move(layer, path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layer(), layers.Dense(2)])
    before = [np.array(variable) for variable in model.variables]
    if layer is LiveNorm:
        export_onnx(model, path)
    else:
        with pytest.raises(ExportError, match="ONNX Runtime and Keras differ"):
            export_onnx(model, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))


def stateful():
    return keras.Sequential(
        [keras.Input(batch_shape=(1, 3, 2)), layers.LSTM(3, stateful=True, name="memory")]
    )


def text():
    return keras.Sequential(
        [keras.Input((1,), dtype="string", name="words"), layers.Identity()], name="net"
    )


def double():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 3, dtype="float64", name="wide"),
            layers.ReLU(dtype="float64"),
        ]
    )


@pytest.mark.parametrize(
    ("model", "request_", "message"),
    [
        (dense_net, {"report": "x"}, r"must be that of a swap\. Received: str\. Give .*`\.report`"),
        (dense_net, {"tolerance": -1}, r"must be a number, 0 at least\. Received: .*=-1"),
        (dense_net, {"tolerance": float("nan")}, r"Received: tolerance=nan"),
        (dense_net, {"tolerance": "x"}, r"Received: tolerance='x'"),
        (dense_net, {"opset": 12}, r"`opset` must be between 13 and \d+.*Received: 12"),
        (dense_net, {"opset": 99}, r"`opset` must be between 13 and \d+.*Received: 99"),
        (dense_net, {"opset": "17"}, r"`opset` must be between 13 and \d+.*Received: 17"),
        (
            dense_net,
            {"inputs": np.ones((2, 3))},
            r"^model 'dense_net': `inputs` must fit the shape \(None, 4\) of input 'x'\. "
            r"Received: shape \(2, 3\)\.",
        ),
        (
            dense_net,
            {"inputs": [np.ones((2, 4)), np.ones((2, 4))]},
            r"one array for each of the inputs \['x'\]\. Received: 2 arrays",
        ),
        (unbuilt, {}, r"^model 'unbuilt': The model must have been built or called"),
        (never_called, {}, r"must have been built or called.*Call it once on data"),
        (unsupported, {}, r"^model 'net', layer 'qr': The operation .* of type Qr.* in front of"),
        (stateful, {}, r"layer 'memory': An ONNX model has no memory between calls"),
        (text, {}, r"Input 'words' takes text"),
        (double, {}, r"layer 'wide': ONNX Runtime \S+ cannot run the model.*float32"),
        (
            lambda: layers.Dense(2),
            {},
            r"must be a keras\.Model, or what `swap_norms` returned\. Received: Dense",
        ),
        (lambda: "model.h5", {}, r"must be a keras\.Model, .* Received: str\. Load a file"),
    ],
)
def test_refusals_say_what_is_wrong_and_touch_nothing(model, request_, message, path):
    path.write_bytes(OLD)
    with pytest.raises(ExportError, match=message):
        export_onnx(model(), path, **request_)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/model.onnx", r"The folder '.*missing' does not exist"),
        ("", r"is a folder"),
    ],
)
def test_places_that_cannot_be_written_to(name, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(dense_net(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_if_allowed(path):
    path.write_bytes(OLD)
    with pytest.raises(ExportError, match=r"model.onnx' exists\. Remove it"):
        export_onnx(dense_net(), path, overwrite=False)
    assert path.read_bytes() == OLD
    export_onnx(dense_net(), path)
    onnx.checker.check_model(str(path))


def test_other_backends_are_refused(path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ExportError, match=r"TensorFlow backend\. Received: jax"):
        export_onnx(dense_net(), path)


# Interruptions and side effects


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interruption_after_writing_leaves_the_old_file(interruption, path, monkeypatch):
    def interrupt(model, temporary, *args, **kwargs):
        assert temporary.stat().st_size > 0
        raise interruption

    monkeypatch.setattr(export, "check", interrupt)
    path.write_bytes(OLD)
    with pytest.raises(interruption):
        export_onnx(dense_net(), path)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_a_kill_after_writing_leaves_the_old_file(path):
    path.write_bytes(OLD)
    program = f"""
        import keras, time
        from kerasnorm.onnx import export
        def wait(*args, **kwargs):
            print("written", flush=True)
            time.sleep(60)
        export.check = wait
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        export.export_onnx(model, {str(path)!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == OLD


def test_the_converters_are_silent_and_others_are_not(path, capfd, monkeypatch):
    optimize = optimizer.optimize_graph

    def speak(*args, **kwargs):
        os.write(2, b"something else\n")
        return optimize(*args, **kwargs)

    monkeypatch.setattr(optimizer, "optimize_graph", speak)
    # As in a program that has not set up Python's logging, which then writes to stderr.
    monkeypatch.setattr(logging.root, "handlers", [])
    capfd.readouterr()
    export_onnx(keras.Sequential([keras.Input((4,)), LayerNorm()]), path)
    with pytest.raises(ExportError):
        export_onnx(unsupported(), path)
    out, err = capfd.readouterr()
    assert out == ""
    # TensorFlow's own log begins its lines with the level and the date.
    lines = [line for line in err.splitlines() if not re.match(r"[IWE]\d{4} \d\d:", line)]
    assert lines == ["something else"] * 2


def padded_pool(activation):
    return keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            layers.Conv2D(4, 3, activation=activation, bias_initializer="normal"),
            layers.ZeroPadding2D(1),
            layers.MaxPooling2D(3, strides=2),
        ]
    )


def test_zero_padding_is_not_fused_into_max_pooling_of_negative_values(path):
    """ONNX Runtime before 1.32 would pad with minus infinity then."""
    model = padded_pool(None)
    model.layers[0].bias.assign([-9.0] * 4)  # the zeros at the edge are the largest
    export_onnx(model, path)
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 3)).astype("float32")
    [name] = inputs_of(path)
    [answer] = run(path, {name: x}).values()
    np.testing.assert_allclose(answer, model(x), atol=1e-5)
    assert producers_of_pools(path) == ["Max"]
    export_onnx(padded_pool("relu"), path)
    assert producers_of_pools(path) != ["Max"]


def producers_of_pools(path):
    graph = onnx.load(path).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    return [producers[node.input[0]] for node in graph.node if node.op_type == "MaxPool"]


@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_a_saturated_softmax_hides_no_fault(scale, path, monkeypatch):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(5, "softmax")]
    )
    model.layers[1].kernel.assign(scale * model.layers[1].kernel)
    assert export_onnx(model, path).max_difference > 0
    perturbed(monkeypatch, lambda proto: enlarge_all_weights(proto, 1.01))
    with pytest.raises(ExportError, match="ONNX Runtime and Keras differ"):
        export_onnx(model, path)


def enlarge_all_weights(proto, factor):
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(factor), tensor.name))


@pytest.mark.parametrize("size", [32, 33])
def test_a_size_that_is_halved_and_doubled_has_its_own_name(size, path):
    image = keras.Input((None, None, 3), name="image")
    halved = layers.Conv2D(3, 3, strides=2, padding="same")(image)
    model = keras.Model(image, layers.UpSampling2D(name="doubled")(halved))
    export_onnx(model, path)
    assert outputs_of(path) == {"doubled": ["batch", "doubled_axis_1", "doubled_axis_2", 3]}
    x = np.zeros((2, size, size, 3), "float32")
    assert run(path, {"image": x})["doubled"].shape == model(x).shape


def test_a_size_that_must_be_even_keeps_its_name(path):
    image = keras.Input((None, None, 3), name="image")
    halved = layers.Conv2D(3, 3, strides=2, padding="same")(image)
    doubled = layers.UpSampling2D()(halved)
    export_onnx(keras.Model(image, layers.Add(name="sum")([doubled, image])), path)
    assert outputs_of(path) == {"sum": ["batch", "image_axis_1", "image_axis_2", 3]}
