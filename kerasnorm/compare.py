"""How far apart two models are."""

from __future__ import annotations

import keras
import numpy as np
from keras import tree

from kerasnorm.onnx.check import batches, relative_difference
from kerasnorm.onnx.signature import signature_of


def output_difference(source: keras.Model, other: keras.Model) -> float:
    """Largest difference between the outputs of two models on seeded random inputs.

    max|Δ| / max|reference| over all outputs, at batch 1 and 3. A saturated output (softmax at 0
    or 1) hides differences before it.

    Args:
        source: The reference, any built model.
        other: A model of the same inputs and outputs.

    Returns:
        A number ≥ 0; NaN if any answer is not finite.
    """
    signature = signature_of(source)
    differences = []
    for batch in batches(source, signature, None):
        answers = [tree.flatten(signature.call(model, batch)) for model in (source, other)]
        differences += [
            relative_difference(*(keras.ops.convert_to_numpy(t) for t in pair))[0]
            for pair in zip(*answers, strict=True)
        ]
    return float(np.max(differences))
