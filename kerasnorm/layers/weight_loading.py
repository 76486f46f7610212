"""Noticing weights that are put into a wrapped layer after its wrapper has read them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras


def report_loads(layer: keras.Layer, method: str, report: Callable[[], None]) -> None:
    """Have `report` called whenever `layer.<method>` has put weights into the layer.

    The two methods that do so, `set_weights` and `load_own_variables` (which Keras calls for each
    layer that it reads from a file), are public, and nothing tells a wrapper of them: so they are
    shadowed on this one object. Its class stays what it is, and copies and files know nothing of
    it.

    Args:
        report: A method. Its object is not kept alive, and nothing is reported once it is gone.
    """
    original = getattr(layer, method)
    listener = weakref.WeakMethod(report)

    @functools.wraps(original)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        listening = listener()
        if listening is not None:
            listening()
        return result

    setattr(layer, method, reporting)
