"""What a failure in TensorFlow, tf2onnx or ONNX Runtime tells: what went wrong, in which layer."""

from __future__ import annotations

import re

import keras

from kerasnorm.keras_private import sublayers

_COLOURS = re.compile(r"\x1b\[\d*m")
_LONGEST = 400


def reason(failure: BaseException) -> str:
    """What an exception says, without traces, colours and argument listings, as a sentence.

    Example:

    >>> reason(ValueError("Exception encountered when calling Dense.call().\\n\\nno such axis"))
    'no such axis.'
    """
    text = _COLOURS.sub("", str(failure))
    if text.lstrip().startswith("in user code:"):
        # AutoGraph prints the whole trace; its last "SomeError: ..." is what happened.
        text = re.split(r"\n\s*\w*(?:Error|Exception): ", text)[-1]
    text = re.sub(r"^\s*Exception encountered when calling [^\n]*\n", "", text)
    text = text.split("Arguments received by")[0]
    paragraph = text.strip().split("\n\n")[0]
    sentence = " ".join(paragraph.split())[:_LONGEST] or type(failure).__name__
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


def layer_of(model: keras.Model, text: str) -> str | None:
    """Name of the innermost layer in an operation's path, None if there is none.

    Args:
        model: The model that the operation is of.
        text: A name like "sequential_1/conv_1/Conv2D", or a text that holds one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> layer_of(model, "sequential_1/head_1/MatMul")
    'head'
    """
    names = {layer.name for layer in sublayers(model)}
    # Keras opens the scope of a layer twice for each call, so in TensorFlow's graph it carries a
    # number that TensorFlow added: dense_1 is the layer `dense`, even if a `dense_1` exists.
    return _innermost(names, text, r"_\d+") or _innermost(names, text, "")


def _innermost(names: set[str], text: str, suffix: str) -> str | None:
    ends = {}
    for name in names:
        # Names may hold slashes of their own, so they are searched for, not split off.
        for match in re.finditer(rf"(?<![\w]){re.escape(name)}{suffix}(?=/)", text):
            ends[name] = match.end(), len(name)
    return max(ends, key=ends.__getitem__, default=None)
