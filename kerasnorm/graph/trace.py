"""Follow a layer's own code: its `call`, run once on symbolic tensors.

What comes back is a `Graph` like that of a functional model, for looking at only: which layers are
called, on what, in which order. Code that leaves Keras (raw TensorFlow, NumPy) or branches on
values cannot be followed.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.graph.additions import as_written
from kerasnorm.graph.graph import Call, Graph


class TraceError(Exception):
    """The code of a layer cannot be followed; the text says why."""


def trace(
    layer: keras.Layer, args: tuple, kwargs: dict[str, Any], *, training: bool = False
) -> Graph:
    """The graph of a layer's `call`, in which each layer that knows `training` is told it.

    Variables, losses and random states stay as they are, attributes that the code sets, and Keras's
    own record of calls too.

    Args:
        layer: A built layer, or a model with a `call` of its own.
        args: What it is called with: symbolic tensors, in any structure, and constants.
        kwargs: The same by name.
        training: Whether it is called in training, or at inference.

    Raises:
        TraceError: If the code cannot be followed, or the layer is not built.
    """
    unbuilt = next(
        (part for part in (layer, *keras_private.sublayers(layer)) if not part.built), None
    )
    if unbuilt is not None:
        raise TraceError(f"'{unbuilt.name}' in it is not built: call the model on data first")
    if keras_private.is_graph_with_code(layer):
        raise TraceError("it has a graph, and a `call` of its own around it")
    kwargs = {k: v for k, v in kwargs.items() if k != "training"}
    entries = {id(t): _input_like(t, t.shape) for t in tensors_among(args, kwargs)}
    args, kwargs = tree.map_structure(lambda v: entries.get(id(v), v), (args, kwargs))
    inputs = list(entries.values())
    layers = [layer, *keras_private.sublayers(layer)]
    with (
        keras_private.unrecorded(layers),
        keras_private.in_call_of(layer, training),
        _attributes_kept(layers),
    ):
        if isinstance(layer, keras.layers.TimeDistributed):
            step = _input_like(inputs[0], (inputs[0].shape[0], *inputs[0].shape[2:]))
            return Graph(layer, [step], _outputs(layer.layer, (step,), {}), (args, kwargs))
        losses = _collected_losses(layers)
        accepts_training = "training" in keras_private.call_parameters(layer)
        more = {"training": training} if accepts_training else {}
        outputs = _outputs(layer.call, args, {**kwargs, **more})
        graph = Graph(layer, inputs, outputs, (args, kwargs), losses)
    return as_written(graph)


def tensors_among(args: tuple, kwargs: dict[str, Any]) -> list:
    """The symbolic tensors of a call, each once: what the inputs of a traced graph stand for."""
    values = tree.flatten((args, {k: v for k, v in kwargs.items() if k != "training"}))
    return list({id(v): v for v in values if isinstance(v, keras.KerasTensor)}.values())


def fed_by(graph: Graph, call: Call) -> list:
    """The tensors that a call of a graph's owner puts in the place of the graph's inputs."""
    if graph.is_code:
        return tensors_among(call.args, call.kwargs)
    # a model with a graph is given a mask too, which is no input of the graph
    given = call.args[0] if call.args else call.kwargs["inputs"]
    if isinstance(given, dict) and not isinstance(graph.inputs, dict):
        given = [given[tensor.name] for tensor in tree.flatten(graph.inputs)]
    return tree.flatten(given)


def fed(graph: Graph, arrays: list) -> list:
    """What the inputs of a graph are, when its owner is called on `arrays`."""
    if isinstance(graph.owner, keras.layers.TimeDistributed):
        return [arrays[0][:, 0]]  # any one step
    return arrays


def said(error: Exception) -> str:
    """The first line that says something; Keras puts in front of it where it happened, in bold."""
    text = re.sub(r"\x1b\[\d+m", "", str(error)).rpartition("Error encountered:")[2]
    lines = text.splitlines()
    telling = (line.strip() for line in lines if not line.startswith("Exception encountered when"))
    return next(filter(None, telling), repr(error))


@contextlib.contextmanager
def _attributes_kept(layers: list[keras.Layer]) -> Iterator[None]:
    """Give layers back, in the end, the attributes that they had."""
    before = [vars(layer).copy() for layer in layers]
    try:
        yield
    finally:
        for layer, attributes in zip(layers, before, strict=True):
            for name in vars(layer).keys() - attributes.keys():
                del vars(layer)[name]
            vars(layer).update(attributes)


def _collected_losses(layers: list[keras.Layer]) -> list[keras.KerasTensor]:
    """The symbolic losses that layers are going to add, which Keras does not take."""
    found: list[keras.KerasTensor] = []

    def collecting(add_loss):
        def collect(loss):
            symbolic = [t for t in tree.flatten(loss) if isinstance(t, keras.KerasTensor)]
            found.extend(symbolic)
            if not symbolic:
                add_loss(loss)

        return collect

    for layer in layers:
        vars(layer)["add_loss"] = collecting(layer.add_loss)
    return found


def _input_like(tensor, shape: tuple):
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, sparse=tensor.sparse)


def _outputs(function, args: tuple, kwargs: dict[str, Any]):
    try:
        with keras.StatelessScope(collect_losses=True):
            outputs = function(*args, **kwargs)
    except Exception as error:
        # any code of any user, which was not written for symbolic tensors
        reason = textwrap.shorten(said(error), 120, placeholder=" …")
        raise TraceError(f"its code cannot be followed on symbolic tensors ({reason})") from error
    flat = tree.flatten(outputs)
    if not flat or not all(isinstance(t, keras.KerasTensor) for t in flat):
        raise TraceError("its code does not only give tensors")
    return outputs
