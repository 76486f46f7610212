"""What a file does not tell: under which `image_data_format` a Rescaling with lists was saved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private

_OTHER = {"channels_first": "channels_last", "channels_last": "channels_first"}


def doubtful_rescalings(model: keras.Model) -> dict[str, str]:
    """What to be warned of, by the name of the layer.

    Rescaling lays a list of scales or offsets along the axis that Keras's setting calls the
    channels, whenever it is called, and keeps no `data_format`. Other layers do: where one of
    them agrees with the setting of now, nothing is to be doubted; nor where there is none, and the
    list fits one axis alone.
    """
    now = keras.config.image_data_format()
    layers = keras_private.sublayers(model)
    formats = {getattr(layer, "data_format", None) for layer in layers} & _OTHER.keys()
    return {
        layer.name: (
            "Rescaling lays its lists along the channels of Keras's `image_data_format`, which the "
            f"file does not tell and which is '{now}' here: if it was saved under '{_OTHER[now]}', "
            f"call `keras.config.set_image_data_format('{_OTHER[now]}')` first"
        )
        for layer in layers
        if isinstance(layer, keras.layers.Rescaling)
        and (now not in formats if formats else _fits_either(layer, now))
        and _length(layer) > 1
    }


def _length(layer: Any) -> int:
    """The length of its lists; 1 for numbers, and for arrays that fill all axes of an image."""
    shapes = [np.shape(value) for value in (layer.scale, layer.offset)]
    return max((shape[-1] for shape in shapes if 0 < len(shape) < 3), default=1)


def _fits_either(layer: Any, now: str) -> bool:
    """Whether the axis that has the channels under the other setting is as long as the lists."""
    shape = (layer.get_build_config() or {}).get("input_shape") or ()
    place = -1 if now == "channels_first" else -3
    return len(shape) >= 4 and shape[place] in (None, _length(layer))
