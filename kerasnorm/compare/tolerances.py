"""How far apart two computations of the same may be, by the dtype they are done in."""

from __future__ import annotations

import keras

from kerasnorm import keras_private

# The step from 1 to the next larger number.
EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# Between runtimes, of a tensor's largest entry. In float32 trained networks differ by 1e-7 to
# 3e-6. Runtimes round float16 at different places (ONNX Runtime's CPU computes it in float32),
# which costs some units of 2^-11 = 5e-4 a layer; bfloat16 has 8 times larger units.
OF_LARGEST_ENTRY = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}

# Between a model and its rewritten copy, in standard deviations. Folding is exact but for what
# float32 rounds differently in a network with other weights: 1e-6 to 1e-5 in trained ones, up to
# 2e-3 where random weights amplify it. What is wrong in the algebra is off by 0.1 and more.
OF_DEVIATION = {"float64": 1e-2, "float32": 1e-2, "float16": 0.3, "bfloat16": 1.0}


def coarsest_dtype(model: keras.Layer) -> str:
    """The dtype with the largest rounding step that some layer of a model computes in."""
    layers = [
        layer
        for layer in (model, *keras_private.sublayers(model))
        if not (keras_private.has_graph(layer) or isinstance(layer, keras.layers.InputLayer))
    ]
    dtypes = {layer.compute_dtype for layer in layers} & EPSILONS.keys()
    return max(dtypes, key=EPSILONS.__getitem__, default="float32")
