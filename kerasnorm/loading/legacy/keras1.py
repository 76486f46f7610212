"""Keras 1: other names for classes and arguments.

https://github.com/keras-team/keras/blob/2.0.0/keras/legacy/interfaces.py has the same mapping, the
other way round.
"""

from __future__ import annotations

from typing import Any

from kerasnorm.loading.legacy.legacy_config import LegacyConfig

_CLASSES = {
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
}
_ARGUMENTS = {
    "W_constraint": "kernel_constraint",
    "W_regularizer": "kernel_regularizer",
    "U_regularizer": "recurrent_regularizer",
    "atrous_rate": "dilation_rate",
    "b_constraint": "bias_constraint",
    "b_regularizer": "bias_regularizer",
    "beta_init": "beta_initializer",
    "bias": "use_bias",
    "border_mode": "padding",
    "depthwise_init": "depthwise_initializer",
    "dropout_U": "recurrent_dropout",
    "dropout_W": "dropout",
    "filter_length": "kernel_size",
    "gamma_init": "gamma_initializer",
    "init": "kernel_initializer",
    "inner_activation": "recurrent_activation",
    "inner_init": "recurrent_initializer",
    "length": "size",
    "nb_filter": "filters",
    "p": "rate",
    "pointwise_init": "pointwise_initializer",
    "pool_length": "pool_size",
    "sigma": "stddev",
    "stride": "strides",
    "subsample": "strides",
    "subsample_length": "strides",
}
# By the class, where a name means several things.
_OF_CLASS = {
    "Dense": {"output_dim": "units"},
    "Embedding": {"init": "embeddings_initializer", "W_regularizer": "embeddings_regularizer"},
    "GRU": {"output_dim": "units"},
    "LSTM": {"output_dim": "units"},
    "PReLU": {"init": "alpha_initializer"},
    "SimpleRNN": {"output_dim": "units"},
}
_SIZES = ("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3")
_FORMATS = {"th": "channels_first", "tf": "channels_last"}
# What training alone needed, or what Keras worked out itself.
_DROPPED = (
    "W_learning_rate_multiplier",
    "b_learning_rate_multiplier",
    "consume_less",
    "forget_bias_init",
    "weights",
)
_MERGES = {
    "ave": "Average",
    "concat": "Concatenate",
    "dot": "Dot",
    "max": "Maximum",
    "mul": "Multiply",
    "sum": "Add",
}
KERAS1_ARGUMENTS = frozenset({"border_mode", "dim_ordering", "nb_filter", "W_regularizer", "init"})


def names_of_keras_1(layer: LegacyConfig) -> None:
    """Classes and arguments of Keras 1 get the names they have had since Keras 2."""
    if layer.major > 1:
        return
    config = layer.config
    if layer.class_name == "Merge":
        _merge(layer)
        return
    layer.class_name = _CLASSES.get(layer.class_name, layer.class_name)
    _check_statistics(layer)
    sizes = [tuple(config.pop(key) for key in keys) for keys in _SIZES if keys[0] in config]
    if sizes:
        config["kernel_size"] = list(sizes[0])
    names = {**_ARGUMENTS, **_OF_CLASS.get(layer.class_name, {})}
    for old in [key for key in config if key in names]:
        config[names[old]] = config.pop(old)
    for key in _DROPPED:
        config.pop(key, None)
    ordering = config.pop("dim_ordering", None)
    if ordering in _FORMATS:
        config["data_format"] = _FORMATS[ordering]
    if layer.class_name == "Embedding":
        config.pop("dropout", None)  # of whole words, in training
    if layer.class_name == "Conv2DTranspose":
        config.pop("output_shape", None)  # what it comes to here is compared with it in the end
    if layer.class_name != "Embedding":  # whose input_dim is its size
        config.pop("input_dim", None)
    config.pop("input_length", None)


def _merge(layer: LegacyConfig) -> None:
    mode = layer.config.get("mode")
    if mode not in _MERGES or layer.config.get("layers"):
        raise layer.refused(f"of Keras 1 with mode={mode!r} has no counterpart in Keras 3.")
    new: dict[str, Any] = {"name": layer.name}
    if mode == "concat":
        new["axis"] = layer.config.get("concat_axis", -1)
    if mode == "dot":
        new["axes"] = layer.config.get("dot_axes", -1)
    layer.class_name, layer.config = _MERGES[mode], new


def _check_statistics(layer: LegacyConfig) -> None:
    mode = layer.config.pop("mode", 0) if layer.class_name == "BatchNormalization" else 0
    if mode != 0:
        raise layer.refused(
            f"of Keras 1 with mode={mode} normalizes by each batch, without stored statistics."
        )
