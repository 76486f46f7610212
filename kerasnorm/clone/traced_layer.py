"""Clone a layer whose code was traced, and trace the clone again."""

from __future__ import annotations

import keras

from kerasnorm import keras_private
from kerasnorm.clone.by_attributes import can_clone_by_attributes, clone_by_attributes
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.state import build_alike, copy_state
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.trace import TraceError, said, trace


def clone_traced(graph: Graph) -> keras.Layer:
    """A clone of the owner of a traced graph, built and with its state.

    Raises:
        SwapError: If it can be cloned neither by its config nor by its attributes.
    """
    source = graph.owner
    try:
        return _built(graph, copy_layer(source))
    except SwapError:
        if not can_clone_by_attributes(source):
            raise
        return _built(graph, clone_by_attributes(source, copy_layer))


def _built(graph: Graph, clone: keras.Layer) -> keras.Layer:
    args, kwargs = graph.arguments
    try:
        with keras_private.unrecorded([clone]):
            clone(*args, **kwargs)  # builds it
    except Exception as error:  # any code of any user, on a batch size that is not known
        raise SwapError(
            "Code must run on tensors alone, whatever their batch size. Received a "
            f"{type(clone).__name__}: {said(error)}",
            layer=graph.owner.name,
            hint="In place of x.shape[0], write -1 or ops.shape(x)[0].",
        ) from error
    if isinstance(graph.owner, keras.layers.TimeDistributed):
        trace(clone, args, kwargs)  # which its own call does not do for what has no `build`
    build_alike(graph.owner, clone)
    copy_state(graph.owner, clone)
    return clone


def trace_again(graph: Graph, clone: keras.Layer, replaced: list[keras.Layer]) -> Graph:
    """The graph of a clone of a traced graph's owner, call for call that of its source.

    Args:
        replaced: The layers in the clone that others stand for now.

    Raises:
        SwapError: If its code needs one of those, or a layer of the source.
    """
    source = graph.owner
    args, kwargs = graph.arguments
    gone = [*replaced, source, *keras_private.sublayers(source)]
    try:
        with keras_private.unrecorded(gone):
            retraced = trace(clone, args, kwargs)
    except TraceError as error:
        raise SwapError(
            f"The code of a layer must run with other layers in the place of "
            f"{', '.join(repr(layer.name) for layer in replaced)}. Received a "
            f"{type(source).__name__}: {error}.",
            layer=source.name,
            hint="Have it call its layers only, and not read what they hold; or leave the "
            "BatchNorm in it out with `sites=`.",
        ) from error
    for before, after in zip(graph.calls, retraced.calls, strict=True):
        if after.operation is before.operation or any(after.operation is x for x in gone):
            raise SwapError(
                f"The code of a layer must take its layers from its attributes. Received a "
                f"{type(source).__name__} whose copy calls the source's own "
                f"'{after.operation.name}'.",
                layer=source.name,
                hint="Hold layers in attributes, lists or dicts.",
            )
    return retraced
