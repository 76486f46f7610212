"""Norms in the short form that ONNX has for them, computing what they computed."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers
from tf2onnx import optimizer

from kerasnorm.errors import ExportError
from kerasnorm.layers import CosineNorm, GroupNorm, LayerNorm, WeightNorm
from kerasnorm.onnx.custom_ops import cosine, layer_norm, registry
from kerasnorm.onnx.custom_ops.custom_op import CustomOp, Scope
from kerasnorm.onnx.custom_ops.short_forms import in_short_forms
from kerasnorm.onnx.export import export_onnx

ANY_GAINS = {"gamma_initializer": "random_normal", "beta_initializer": "random_normal"}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def exported(path, shape, *stack, opset=17):
    """Op counts of a stack of layers; the export itself compares it with Keras."""
    model = keras.Sequential([keras.Input(shape), *stack])
    result = export_onnx(model, path, opset=opset)
    assert result.max_difference <= 1e-5
    return result.op_counts


def without_sizes(counts):
    """Op counts less those that repeat gains and biases for every entry of a sample."""
    return {name: n for name, n in counts.items() if name not in ("Expand", "Shape")}


def conv():
    return layers.Conv2D(4, 3)


@pytest.mark.parametrize(
    ("shape", "norm"),
    [
        ((8,), lambda: LayerNorm(**ANY_GAINS)),
        ((8,), lambda: LayerNorm(axis="sample", **ANY_GAINS)),
        ((8,), lambda: LayerNorm(scalar_affine=True, **ANY_GAINS)),
        ((8,), lambda: LayerNorm(scale=False)),
        ((8,), lambda: LayerNorm(center=False)),
        ((8,), lambda: layers.LayerNormalization(**ANY_GAINS)),
        ((8,), lambda: layers.LayerNormalization(scale=False, center=False)),
        ((None, 8), lambda: LayerNorm(**ANY_GAINS)),
        ((None, 8), lambda: LayerNorm(axis="sample", **ANY_GAINS)),
        ((None, 8), lambda: LayerNorm(axis="sample", scalar_affine=True, **ANY_GAINS)),
        ((5, 8), lambda: layers.LayerNormalization(axis=(1, 2), **ANY_GAINS)),
    ],
)
def test_one_operator_and_nothing_else(shape, norm, path):
    assert without_sizes(exported(path, shape, norm())) == {"LayerNormalization": 1}


@pytest.mark.parametrize(
    "norm",
    [
        lambda: LayerNorm(axis="sample", **ANY_GAINS),
        lambda: LayerNorm(axis="sample", scalar_affine=True, **ANY_GAINS),
        lambda: LayerNorm(axis="sample", scale=False, center=False),
        lambda: layers.GroupNormalization(groups=1, **ANY_GAINS),
    ],
)
def test_sample_norms_between_convolutions_leave_no_transposition(norm, path):
    stack = [conv(), norm(), layers.ReLU(), conv(), norm(), layers.ReLU(), conv()]
    counts = exported(path, (None, None, 3), *stack)
    # Transposed once on the way into the model and once on the way out.
    assert without_sizes(counts) == {
        "Transpose": 2,
        "Conv": 3,
        "LayerNormalization": 2,
        "Relu": 2,
    }


def test_gains_are_made_as_large_as_a_sample_before_the_model_runs(path):
    """ONNX Runtime does it when it loads the file: all that the two Expands need is constant."""
    exported(path, (6, 6, 3), conv(), LayerNorm(axis="sample", **ANY_GAINS), conv())
    graph = onnx.load(path).graph
    constant = {tensor.name for tensor in graph.initializer}
    found = [set(node.input) <= constant for node in graph.node if node.op_type == "Expand"]
    assert found == [True, True]
    # Not as large in the file: 4 channels of 4 × 4.
    assert max(np.prod(t.dims) for t in graph.initializer if t.dims[-1:] == [1]) == 4


def test_channel_norms_between_convolutions_leave_two_transpositions(path):
    stack = [conv(), LayerNorm(**ANY_GAINS), layers.ReLU(), conv()]
    counts = exported(path, (None, None, 3), *stack)
    assert counts == {"Transpose": 4, "Conv": 2, "LayerNormalization": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("shape", "norm"),
    [
        ((6, 5, 4), lambda: layers.LayerNormalization(axis=[1, 2, 3], **ANY_GAINS)),
        ((6, 5, 4), lambda: layers.LayerNormalization(axis=[1, 2], **ANY_GAINS)),
        ((6, 5, 4), lambda: LayerNorm(axis=(1, 3), **ANY_GAINS)),
        ((None, None, 4), lambda: LayerNorm(axis=(1, 2), scalar_affine=True, **ANY_GAINS)),
        ((4, 6, 5), lambda: LayerNorm(axis="sample", channel_axis=1, **ANY_GAINS)),
        ((4, 6, 5), lambda: LayerNorm(axis=1, **ANY_GAINS)),
        ((None, None, None, 4), lambda: LayerNorm(axis="sample", **ANY_GAINS)),
    ],
)
def test_any_axes(shape, norm, path):
    counts = exported(path, shape, norm())
    assert counts.pop("LayerNormalization") == 1
    assert set(without_sizes(counts)) <= {"Transpose"}


def test_inside_another_model(path):
    inner = keras.Sequential([keras.Input((8,)), LayerNorm(**ANY_GAINS)])
    assert exported(path, (8,), inner) == {"LayerNormalization": 1}


def test_half_precision_keeps_its_statistics_in_float32(path):
    model = keras.Sequential(
        [keras.Input((8,)), LayerNorm(dtype="mixed_float16"), layers.ReLU(dtype="float32")]
    )
    # Numbers whose squares float16 cannot hold.
    x = np.random.default_rng(0).uniform(1e3, 3e4, (3, 8)).astype("float32")
    assert export_onnx(model, path, inputs=x).op_counts["LayerNormalization"] == 1


def test_epsilon_and_gains_arrive(path):
    norm = LayerNorm(epsilon=0.25, **ANY_GAINS)
    exported(path, (8,), norm)
    graph = onnx.load(path).graph
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in graph.node[0].attribute}
    assert attributes == {"axis": 1, "epsilon": 0.25}
    values = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    for variable in norm.get_weights():
        assert any(np.array_equal(variable, value) for value in values)


def test_before_opset_17_there_is_no_such_operator(path):
    assert "LayerNormalization" not in exported(path, (8,), LayerNorm(), opset=16)


def test_masked_steps_that_must_not_count_are_left_to_the_layer(path):
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(tokens)
    # Whole vectors masked: the operator. Some of the entries of a sample masked: not.
    x = LayerNorm(axis="sample", **ANY_GAINS)(LayerNorm(**ANY_GAINS)(x))
    result = export_onnx(keras.Model(tokens, x), path)
    assert result.op_counts["LayerNormalization"] == 1
    assert result.op_counts["ReduceSum"] > 0


def test_a_subclass_with_a_formula_of_its_own_is_left_alone(path):
    class Doubled(LayerNorm):
        def call(self, inputs, mask=None):
            return 2 * super().call(inputs, mask=mask)

    class Shifted(layers.LayerNormalization):
        def call(self, inputs):
            return super().call(inputs) + 1

    class Tripled(GroupNorm):
        def call(self, inputs, mask=None):
            return 3 * super().call(inputs, mask=mask)

    counts = exported(path, (8,), Doubled(), Shifted(), Tripled(groups=2))
    assert "LayerNormalization" not in counts


COSINES = [
    {},
    {"rescale": True},
    {"rescale": True, "damping": 0.5},
]


@pytest.mark.parametrize("arguments", COSINES)
def test_a_dense_cosine_is_its_formula(arguments, path):
    norm = CosineNorm(layers.Dense(3, bias_initializer="random_normal"), **arguments)
    assert exported(path, (8,), norm) == {
        "Mul": 1,
        "ReduceSum": 1,
        "Add": 2,
        "Sqrt": 1,
        "Div": 1,
        "MatMul": 1,
    }


@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("arguments", COSINES)
def test_cosines_of_convolutions_are_their_formula(arguments, size, path):
    def norm():
        conv = layers.Conv2D(4, 3, padding="same", bias_initializer="random_normal")
        return CosineNorm(conv, **arguments)

    counts = exported(path, (size, size, 3), norm(), layers.ReLU(), norm())
    for name in ("Shape", "Slice", "Concat"):
        assert counts.pop(name, 0) == (2 if size is None else 0)
    # Once on the way into the model and once on the way out.
    assert counts.pop("Transpose") == 2
    assert counts.pop("Relu") == 1
    # The plain form has its bias in the convolution.
    assert counts.pop("Add", 0) == (2 if arguments else 0)
    # The contraction, the squares of a patch, their root and the quotient, twice.
    assert counts == {"Conv": 4, "Reshape": 4, "Mul": 2, "MatMul": 2, "Sqrt": 2, "Div": 2}


@pytest.mark.parametrize("size", [None, 12])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_pointwise_cosines_are_convolutions_of_unit_vectors(damping, size, path):
    conv = layers.Conv2D(4, 1, bias_initializer="random_normal")
    norm = CosineNorm(conv, rescale=True, damping=damping)
    counts = exported(path, (size, size, 3), norm, layers.ReLU())
    for name in ("Shape", "Slice", "Concat"):
        assert counts.pop(name, 0) == (1 if size is None else 0)
    # The bias is in the convolution; what is added is the damping.
    assert counts == {
        "Transpose": 2,
        "Reshape": 2,
        "Mul": 1,
        "MatMul": 1,
        "Add": 1,
        "Sqrt": 1,
        "Div": 1,
        "Conv": 1,
        "Relu": 1,
    }


@pytest.mark.parametrize("arguments", [*COSINES, {"centered": True}])
def test_a_patch_of_zeros_has_no_direction(arguments, path):
    model = keras.Sequential(
        [keras.Input((6, 6, 3), name="x"), CosineNorm(layers.Conv2D(4, 3), **arguments)]
    )
    x = np.random.default_rng(0).standard_normal((3, 6, 6, 3)).astype("float32")
    x[0] = 0
    x[1, :3, :3] = 0
    assert export_onnx(model, path, inputs=x).max_difference <= 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
        lambda: layers.Conv2D(8, 3, groups=2),
    ],
)
def test_cosines_across_groups_measure_one_patch(make, path):
    counts = exported(path, (8, 8, 4), CosineNorm(make(), rescale=True, across_groups=True))
    assert counts["Conv"] == 2  # the contraction and the lengths
    assert counts["MatMul"] == 1


@pytest.mark.parametrize("name", ["LayerNormalization", "CosineNormUnits", "sine"])
def test_a_function_of_python_is_refused_whatever_its_name(name, path):
    class Foreign(layers.Layer):
        def call(self, x):
            y = tf.numpy_function(np.sin, [x], "float32", stateful=False, name=name)
            return tf.ensure_shape(y, x.shape)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    with pytest.raises(ExportError, match=r"layer 'foreign': .*PyFuncStateless"):
        exported(path, (8,), Foreign(name="foreign"))


def test_cosines_in_half_precision_are_traced_as_they_are(path):
    norm = CosineNorm(layers.Dense(3, dtype="mixed_float16"))
    x = np.random.default_rng(0).uniform(1e3, 3e4, (3, 8)).astype("float32")
    counts = export_onnx(keras.Sequential([keras.Input((8,)), norm]), path, inputs=x).op_counts
    assert counts["ReduceMax"] >= 1  # the guard of its own formula


def test_subclasses_of_cosines_are_left_alone(path):
    class Doubled(CosineNorm):
        def call(self, inputs):
            return 2 * super().call(inputs)

    exported(path, (8,), Doubled(layers.Dense(3)))


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_root_mean_square_norms_are_left_alone(path):
    counts = exported(path, (8,), layers.LayerNormalization(rms_scaling=True))
    assert "LayerNormalization" not in counts


def test_float64_keeps_its_epsilon(path):
    x = 1e-5 * np.random.default_rng(0).standard_normal((3, 8))
    model = keras.Sequential([keras.Input((8,), dtype="float64"), LayerNorm(dtype="float64")])
    assert export_onnx(model, path, inputs=x).max_difference <= 1e-10


def test_axes_in_any_order(path):
    counts = exported(path, (6, 5, 4), layers.LayerNormalization(axis=(-1, 1), **ANY_GAINS))
    assert counts["LayerNormalization"] == 1


def test_single_gains_have_an_entry_per_channel(path):
    exported(path, (6, 6, 4), LayerNorm(axis="sample", scalar_affine=True, **ANY_GAINS))
    graph = onnx.load(path).graph
    [gain, bias] = (node.input[0] for node in graph.node if node.op_type == "Expand")
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert sizes[gain] == sizes[bias] == [4, 1, 1]


class Mapped(layers.Layer):
    """A layer on each step, by one of the ways that TensorFlow has to write loops."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how = inner, how

    def build(self, shape):
        self.inner.build((None, *shape[2:]))

    def call(self, x):
        if self.how == "vectorized":
            return keras.ops.vectorized_map(self.inner, x)
        if self.how == "branch":
            # Of unlike inputs, so that both branches stay.
            first, second = lambda: self.inner(x[:, 0]), lambda: -self.inner(x[:, 1])
            return keras.ops.cond(keras.ops.sum(x) > 0, first, second)
        return keras.ops.map(self.inner, x)

    def compute_output_spec(self, x):
        inner = self.inner.compute_output_shape((x.shape[0], *x.shape[2:]))
        steps = () if self.how == "branch" else (x.shape[1],)
        return keras.KerasTensor((x.shape[0], *steps, *inner[1:]), x.dtype)


def norm():
    return LayerNorm(**ANY_GAINS)


def dense_cosine():
    return CosineNorm(layers.Dense(3), rescale=True)


def conv_cosine():
    return CosineNorm(layers.Conv2D(3, 3, padding="same"), rescale=True)


@pytest.mark.parametrize(
    ("make", "how"),
    [
        *((make, how) for make in (norm, dense_cosine) for how in ("vectorized", "branch", "loop")),
        # tf2onnx writes no convolution inside a branch, whatever is around it.
        (conv_cosine, "vectorized"),
        (conv_cosine, "loop"),
    ],
)
def test_inside_loops_and_branches(make, how, path):
    exported(path, (4, 6, 6, 3), Mapped(make(), how))


@pytest.mark.parametrize("size", [1, 3])
def test_an_empty_batch_is_answered_by_none(size, path):
    exported(path, (8, 8, 3), CosineNorm(layers.Conv2D(4, size), rescale=True))
    session = onnxruntime.InferenceSession(path)
    empty = np.zeros((0, 8, 8, 3), "float32")
    [answer] = session.run(None, {session.get_inputs()[0].name: empty})
    assert answer.shape == (0, 9 - size, 9 - size, 4)


@pytest.mark.parametrize("damping", [0.0, 1e-25])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-9, 1e18])
def test_cosines_of_small_and_large_inputs(scale, damping, path):
    norm = CosineNorm(layers.Dense(4), rescale=True, damping=damping)
    x = scale * np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), norm])
    assert export_onnx(model, path, inputs=x).max_difference <= 1e-5


def test_inside_time_distributed_layers_have_their_operator(path):
    counts = exported(path, (5, 8), layers.TimeDistributed(LayerNorm(**ANY_GAINS)))
    assert counts["LayerNormalization"] == 1


def test_inside_a_time_distributed_of_its_own_kind_layers_are_traced_as_they_are(path):
    class Steps(layers.TimeDistributed):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training, mask=mask)

    counts = exported(path, (5, 8), Steps(LayerNorm(**ANY_GAINS)))
    assert "LayerNormalization" not in counts


def test_the_model_itself_is_left_alone():
    norm = LayerNorm()
    model = keras.Sequential([keras.Input((8,)), norm])
    before = dict(vars(norm))
    copy, shortened = in_short_forms(model, 17, True)
    assert shortened
    assert "call" in vars(copy.layers[0])
    assert copy.layers[0] is not norm
    assert vars(norm) == before
    for opset, short in ((16, True), (17, False)):
        assert in_short_forms(model, opset, short) == (model, False)


def test_a_layer_that_the_copy_has_in_common_with_the_model_is_left_alone():
    class Holder(layers.Layer):
        """Hands its layer to whoever reads its config."""

        def __init__(self, inner, **kwargs):
            super().__init__(**kwargs)
            self.inner = inner

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return {**super().get_config(), "inner": self.inner}

    norm = LayerNorm()
    model = keras.Sequential([keras.Input((8,)), Holder(norm)])
    in_short_forms(model, 17, True)
    assert "call" not in vars(norm)


def test_a_layer_whose_call_was_replaced_is_left_alone(path):
    norm = LayerNorm()
    model = keras.Sequential([keras.Input((8,)), WeightNorm(layers.Dense(8)), norm])
    own = norm.call
    object.__setattr__(norm, "call", lambda inputs, mask=None: own(inputs) + 1)
    assert in_short_forms(model, 17, True) == (model, False)
    assert "LayerNormalization" not in export_onnx(model, path).op_counts


def test_a_model_that_cannot_be_rebuilt_is_exported_as_it_is(path):
    class Code(keras.Model):
        """Leaves Keras: its code cannot be followed on symbolic tensors."""

        def __init__(self):
            super().__init__()
            self.norm, self.dense = LayerNorm(**ANY_GAINS), WeightNorm(layers.Dense(3))

        def call(self, x):
            return self.dense(self.norm(tf.nn.relu(x)))

    model = Code()
    model(np.ones((2, 4), "float32"))
    assert in_short_forms(model, 17, True) == (model, False)
    counts = export_onnx(model, path).op_counts
    assert "LayerNormalization" not in counts
    assert counts["MatMul"] == 1


def test_the_short_form_computes_the_same_function():
    norm = LayerNorm(axis="sample", **ANY_GAINS)
    model = keras.Sequential([keras.Input((None, None, 4)), norm])
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 4)).astype("float32")
    copy, _ = in_short_forms(model, 17, True)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)


def test_an_optimization_that_fails_is_left_out(path, monkeypatch):
    optimize = optimizer.optimize_graph

    def fails_at_first(graph, catch_errors=True, **arguments):
        if not catch_errors:
            raise ValueError("It fails.")
        return optimize(graph, catch_errors=catch_errors, **arguments)

    monkeypatch.setattr(optimizer, "optimize_graph", fails_at_first)
    assert exported(path, (8,), layers.Dense(3))["MatMul"] == 1


def test_exact_gelus_between_convolutions_leave_no_transposition(path):
    gelu = layers.Activation(lambda x: keras.activations.gelu(x, approximate=False))
    counts = exported(path, (6, 6, 3), conv(), gelu, conv())
    assert counts["Transpose"] == 2
    assert counts["Erf"] == 1


def test_every_custom_operation_is_in_the_table_under_a_mark_of_its_own():
    modules = (cosine, layer_norm)
    ours = [op for module in modules for op in vars(module).values() if isinstance(op, CustomOp)]
    assert {op.mark: op for op in ours} == registry._BY_MARK
    assert len(registry._BY_MARK) == len(ours) == 3


def test_constants_are_shared_only_by_those_of_one_dtype_and_shape():
    class Made:
        input = ()
        name = "norm"

        def make_const(self, name, array):
            self.output = [name]
            return self

    scope = Scope(Made(), Made(), {})
    whole = scope.constant(np.zeros(2, "int64"))
    assert scope.constant(np.zeros(2, "int64")) == whole
    assert scope.constant(np.zeros(2, "float64")) != whole
    assert scope.constant(np.zeros((1, 2), "int64")) != whole
