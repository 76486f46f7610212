"""Layers of well-known packages that ended with Keras 2: what they are, or how to be rid of them.

- TensorFlow Addons: `WeightNormalization` around Dense or a convolution is w = g·v/‖v‖, our
  `WeightNorm`; its instance and group normalization are Keras's own by now.
- keras_contrib: `InstanceNormalization` divides by σ + ε, not by sqrt(σ² + ε).
- TensorFlow Model Optimization: wrappers for training, to be stripped where they were made.
"""

from __future__ import annotations

import keras

from kerasnorm.layers import WeightNorm
from kerasnorm.loading.legacy.legacy_config import LegacyConfig
from kerasnorm.loading.legacy.legacy_layers import ContribInstanceNormalization

_WEIGHT_NORMALIZED = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)
_TFMOT = "from TensorFlow Model Optimization (tfmot)"
_STRIP = "Where it was made, save `{}` instead."
# Of each such class, what to save in its place.
_STRIPPED = {
    "ClusterWeights": "tfmot.clustering.keras.strip_clustering(model)",
    "PruneLowMagnitude": "tfmot.sparsity.keras.strip_pruning(model)",
}
_QUANTIZED = frozenset(
    {"QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2", "OutputOnlyQuantize"}
)


def known_strangers(layer: LegacyConfig) -> None:
    """Layers of other packages become what computes the same; others are refused by name."""
    package, _, name = layer.class_name.rpartition(">")
    of_addons = package == "Addons" or (not package and "groups" in layer.config)
    if layer.registered is not None or (not of_addons and hasattr(keras.layers, name)):
        return
    if name == "WeightNormalization":
        _weight_normalization(layer)
    elif name in ("GroupNormalization", "InstanceNormalization") and of_addons:
        layer.class_name = "GroupNormalization"
        if name == "InstanceNormalization":
            layer.config["groups"] = -1
            layer.log_repair("Addons' InstanceNormalization became GroupNormalization(groups=-1)")
    elif name == "InstanceNormalization":
        layer.class_name = ContribInstanceNormalization.__name__
        layer.registered = ContribInstanceNormalization
        layer.log_repair("keras_contrib's InstanceNormalization became a layer that computes it")
    elif name in _STRIPPED:
        raise layer.refused(
            f"is a wrapper for training {_TFMOT}.", hint=_STRIP.format(_STRIPPED[name])
        )
    elif name in _QUANTIZED:
        raise layer.refused(
            f"is a layer for training under quantization {_TFMOT}.",
            hint="Where it was made, load it in `tfmot.quantization.keras.quantize_scope()`, copy "
            "the weights of each wrapper's `layer` into the model that `quantize_model` was given, "
            "and save that.",
        )
    elif package == "Addons":
        raise layer.refused(
            f"is {name} of TensorFlow Addons, which has no counterpart here.",
            hint="Build that part of the model with Keras layers and load the weights into it.",
        )


def _weight_normalization(layer: LegacyConfig) -> None:
    inner = layer.config.get("layer")
    if type(inner) not in _WEIGHT_NORMALIZED:
        raise layer.refused(
            f"of TensorFlow Addons is known around Dense and convolutions. Received: "
            f"{type(inner).__name__}.",
            hint="Remove it where it was made: give the layer the kernel g·v/‖v‖.",
        )
    layer.config.pop("data_init", None)  # of the first call, which was made long ago
    layer.class_name, layer.registered = WeightNorm.__name__, WeightNorm
    layer.log_repair("Addons' WeightNormalization became kerasnorm's WeightNorm")
