"""What Keras 3 trips over in a layer of an older file, one repair a function.

Each takes a `LegacyConfig` and changes it in place, and says so where the file is what has to be
mended: a name that merely changed is no news to anybody.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from kerasnorm.loading.legacy.keras1 import names_of_keras_1
from kerasnorm.loading.legacy.legacy_config import LegacyConfig
from kerasnorm.loading.legacy.legacy_layers import keras2_hard_sigmoid
from kerasnorm.loading.legacy.strangers import known_strangers
from kerasnorm.loading.registered import how_to_register

_RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "UnifiedGRU": "GRU",
    "UnifiedLSTM": "LSTM",
}
# Keys that say nothing at these values; Keras 3 has none of them.
_SAYS_NOTHING: dict[str, Any] = {
    "causal": False,
    "dynamic": False,
    "groups": 1,
    "optional": False,
    "ragged": False,
    "sparse": False,
    "time_major": False,
}
# Keys that do not touch what a trained layer answers.
_TRAINING_ONLY = ("_constraint", "_initializer", "regularizer")
_WITHOUT_EFFECT = frozenset(
    {
        "fused",
        "implementation",
        "input_length",
        "key_shape",
        "query_shape",
        "rng_type",
        "robust_masking",
        "softmax_robust_masking",
        "trainable",
        "value_shape",
        "virtual_batch_size",
        "vocabulary_size",
    }
)
_FUNCTIONS = ("activation", "recurrent_activation")
# By name in Keras 2; others came from the user's own code.
_ACTIVATIONS = frozenset(
    {
        "elu",
        "exponential",
        "gelu",
        "hard_sigmoid",
        "linear",
        "log_softmax",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softmax",
        "softplus",
        "softsign",
        "swish",
        "tanh",
    }
)
# In the files of a whole generation: dropped without a word.
_COMMON = frozenset(_WITHOUT_EFFECT | {"dynamic", "optional", "ragged", "sparse", "time_major"})


def names_that_changed(layer: LegacyConfig) -> None:
    """Classes that were renamed, and arguments of theirs."""
    layer.class_name = _RENAMED.get(layer.class_name, layer.class_name)
    if layer.class_name == "LeakyReLU" and "alpha" in layer.config:
        layer.config["negative_slope"] = layer.config.pop("alpha")
    if layer.class_name == "SyncBatchNormalization":
        layer.class_name = "BatchNormalization"
        layer.config["synchronized"] = True


def cudnn_layers(layer: LegacyConfig) -> None:
    """The layers for CUDA alone are the ordinary ones with other weights (see `layouts`)."""
    if layer.class_name == "CuDNNLSTM":
        layer.class_name = "LSTM"
        layer.config["recurrent_activation"] = "sigmoid"
    elif layer.class_name == "CuDNNGRU":
        layer.class_name = "GRU"
        layer.config |= {"recurrent_activation": "sigmoid", "reset_after": True}
    else:
        return
    layer.log_repair(f"CuDNN{layer.class_name} became {layer.class_name}")


def thresholded_relu(layer: LegacyConfig) -> None:
    """`ThresholdedReLU(theta)` is gone: x where x > θ, else 0, as `ReLU(threshold=θ)` is."""
    if layer.class_name == "ThresholdedReLU":
        layer.class_name = "ReLU"
        layer.config["threshold"] = float(layer.config.pop("theta", 1.0))
        layer.log_repair("ThresholdedReLU became ReLU(threshold=…)")


def axis_in_a_list(layer: LegacyConfig) -> None:
    """BatchNormalization's `axis` was stored as a list of one."""
    axis = layer.config.get("axis")
    if layer.class_name != "BatchNormalization" or not isinstance(axis, list):
        return
    if len(axis) != 1:
        raise layer.refused(f"must have one axis in Keras 3. Received: axis={axis}.")
    layer.config["axis"] = axis[0]
    layer.log_repair("BatchNormalization's `axis` was a list of one")


def numbers_for_flags(layer: LegacyConfig) -> None:
    """Where a true or false belongs, 1 or 0 was stored."""
    for key, default in _defaults(layer).items():
        value = layer.config.get(key)
        if isinstance(default, bool) and not isinstance(value, bool) and value in (0, 1):
            layer.config[key] = bool(value)
            layer.log_repair(f"`{key}` was the number {value}")


def activations(layer: LegacyConfig) -> None:
    """Activations by name; `hard_sigmoid` was another function before Keras 3."""
    for key in _FUNCTIONS:
        value = layer.config.get(key)
        if isinstance(value, dict):  # {"class_name": "function", "config": name, …}
            value = value.get("config")
        if value == "hard_sigmoid":
            layer.log_repair(
                "`hard_sigmoid` is that of Keras 2, x/5 + 1/2, not of Keras 3, x/6 + 1/2"
            )
            value = keras2_hard_sigmoid
        if value == "log_softmax_v2":
            value = "log_softmax"
        if isinstance(value, str):
            # By its name Keras finds none that is registered.
            value = keras.saving.get_registered_object(value) or value
        if isinstance(value, str):
            _check_activation(layer, value)
        if value is not None:
            layer.config[key] = value


def _check_activation(layer: LegacyConfig, name: str) -> None:
    try:
        keras.activations.get(name)
    except ValueError:
        raise layer.refused(
            f"has an activation that this Keras does not know: '{name}'.",
            hint=how_to_register(name, "function"),
        ) from None
    if name not in _ACTIVATIONS:
        layer.log_repair(
            f"`{name}` was no activation of Keras 2: taken for the one that Keras 3 has"
        )


def reset_of_gru(layer: LegacyConfig) -> None:
    """GRU did not say where it resets as long as it could do so in one place only."""
    if layer.class_name in ("GRU", "GRUCell"):
        layer.config.setdefault("reset_after", False)


def initializers(layer: LegacyConfig) -> None:
    """`dtype` was an argument of initializers; the weights are loaded, so an unknown one may go."""
    _for_training(layer, "_initializer", keras.initializers.get)


def regularizers_and_constraints(layer: LegacyConfig) -> None:
    """Without effect on what a model answers: those that Keras 3 does not know are left out."""
    _for_training(layer, "regularizer", keras.regularizers.get)
    _for_training(layer, "_constraint", keras.constraints.get)


def _for_training(layer: LegacyConfig, ending: str, known: Callable[[Any], Any]) -> None:
    for key in [key for key in layer.config if key.endswith(ending)]:
        value = layer.config[key]
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            inner = dict(value["config"])
            if inner.pop("dtype", None) is not None:
                layer.log_repair(f"`dtype` removed from `{key}`")
            value = {"class_name": value.get("class_name"), "config": inner}
        try:
            layer.config[key] = known(value)
        except Exception:
            del layer.config[key]
            layer.log_repair(f"`{key}` left out, which this Keras does not know")


def dtype_policies(layer: LegacyConfig) -> None:
    """Policies had other classes, and were dictionaries."""
    dtype = layer.config.get("dtype")
    if isinstance(dtype, dict):
        inner = dtype.get("config")
        dtype = inner.get("name") if isinstance(inner, dict) else None
    if dtype is None or "infer" in str(dtype):  # from the inputs, which have one
        layer.config.pop("dtype", None)
        return
    layer.config["dtype"] = dtype


def arguments_that_are_gone(layer: LegacyConfig) -> None:
    """Arguments that Keras 3 does not have: dropped where they say nothing, refused elsewhere."""
    known = _defaults(layer) or layer.config  # of an unknown class nothing is known
    for key in [key for key in layer.config if key not in known]:
        value = layer.config[key]
        harmless = (
            value is None
            or key in _WITHOUT_EFFECT
            or key.endswith(_TRAINING_ONLY)
            or (key in _SAYS_NOTHING and value == _SAYS_NOTHING[key])
        )
        if not harmless and layer.registered is not None:
            continue  # which may take it out of its **kwargs
        if not harmless:
            raise layer.refused(
                f"has an argument that this Keras does not know: {key}={value!r}.",
                hint="Load it in the Keras that wrote it and save it without.",
            )
        del layer.config[key]
        if key not in _COMMON and value is not None:
            layer.log_repair(f"`{key}` removed from {layer.class_name}")


def files_beside(layer: LegacyConfig) -> None:
    """A layer that would read another file when it is made."""
    for key in ("vocabulary", "idf_weights"):
        if isinstance(layer.config.get(key), str):
            raise layer.refused(
                f"would read another file: {key}={layer.config[key]!r}.",
                hint="Save the model with the contents instead.",
            )


def other_at_inference(layer: LegacyConfig) -> None:
    """Layers of the same name that answer otherwise."""
    if layer.class_name == "RandomCrop":
        raise layer.refused(
            "crops at inference in Keras 2, and not in Keras 3.",
            hint="Put a CenterCrop in its place and load the weights into that.",
        )
    bilinear = layer.config.get("interpolation") == "bilinear"
    if layer.class_name == "UpSampling2D" and bilinear and layer.before_half_pixels:
        layer.log_warning(
            "bilinear UpSampling2D takes other sample points than before TensorFlow 2, so that "
            "answers differ if it was trained there"
        )


REPAIRS: tuple[Callable[[LegacyConfig], None], ...] = (
    known_strangers,
    names_of_keras_1,
    names_that_changed,
    cudnn_layers,
    reset_of_gru,
    thresholded_relu,
    axis_in_a_list,
    numbers_for_flags,
    activations,
    initializers,
    regularizers_and_constraints,
    dtype_policies,
    files_beside,
    other_at_inference,
    arguments_that_are_gone,
)


def _defaults(layer: LegacyConfig) -> dict[str, Any]:
    """The arguments that the class of this Keras takes, with their defaults."""
    cls = layer.layer_class()
    found: dict[str, Any] = {}
    for base in cls.__mro__ if cls else ():
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        named = {
            p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        found = named | found
        # Without **kwargs nothing reaches the bases.
        if base is keras.Layer or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    found.pop("self", None)
    return found


def repair_own_class(layer: LegacyConfig) -> None:
    """What can be repaired for a class that is derived from no layer of Keras but `Layer`."""
    dtype_policies(layer)
    if "hard_sigmoid" in [layer.config.get(key) for key in _FUNCTIONS]:
        layer.log_warning(
            "`hard_sigmoid` in a class of your own is that of Keras 3, x/6 + 1/2, and was x/5 + 1/2"
        )
