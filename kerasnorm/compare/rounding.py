"""How much of a difference between two runtimes is rounding, which no runtime can help.

Every number in a network is off by up to half a unit in its last place, differently in each
runtime. Deep networks without training amplify that: InceptionV3 with random weights is off by
3e-4 in Keras and by 2e-4 in ONNX Runtime, both against float64. Moving every weight and input
by one unit in the last place shows how much a network amplifies. Over ten networks, trained and
not, that moved the answers by 0.7 to 3 times the difference between the runtimes.
"""

from __future__ import annotations

import keras
import numpy as np

from kerasnorm.onnx.trace import Traced

_SEED = 0


def rounding_sensitivity(traced: Traced, batch: list[np.ndarray]) -> float:
    """How far the model's own answer moves when every weight and input moves by one rounding step.

    Args:
        traced: The model as a graph.
        batch: Inputs, flat.

    Returns:
        The largest entry of the movement over the largest entry of the output, the largest over
        all outputs; infinite if an answer is not finite.
    """
    generator = np.random.default_rng(_SEED)
    before = traced.run(batch, traced.outputs)
    moved = [_moved(array, generator) for array in batch]
    weights = {
        name: _moved(keras.ops.convert_to_numpy(variable), generator)
        for name, variable in traced.weights.items()
    }
    graph = _moved_graph(traced.graph, generator)
    after = traced.run(moved, traced.outputs, graph, weights)
    largest = 0.0
    for x, y in zip(before, after, strict=True):
        if np.issubdtype(x.dtype, np.floating) and x.size:
            x, y = x.astype(np.float64), y.astype(np.float64)
            scale = np.max(np.abs(x)) or 1.0
            movement = float(np.max(np.abs(x - y)) / scale)
            largest = max(largest, movement if np.isfinite(movement) else np.inf)
    return largest


def _moved_graph(graph, generator):
    import tensorflow as tf

    moved = type(graph)()
    moved.CopyFrom(graph)
    for node in moved.node:
        if node.op != "Const":
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if value.dtype in (np.float16, np.float32, np.float64):
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(_moved(value, generator)))
    return moved


def _moved(array: np.ndarray, generator) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    up = generator.integers(0, 2, array.shape, dtype=np.int8).astype(bool)
    infinity = array.dtype.type(np.inf)
    moved = np.nextafter(array, np.where(up, infinity, -infinity))
    # Zeros are structure (padding, masks), and exact in every runtime.
    return np.asarray(np.where(array == 0, array, moved), array.dtype)
