"""Names of the sizes that a file leaves open: what has one name is always the same."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from kerasnorm.onnx.io_spec import Signature

# What is tried for the batch and for the free sizes after it, by axis: multiples of 32, for nets
# that halve them, and unlike each other. Then odd ones: halved and doubled, they are others.
_TRIED = ((3, 96, 1120, 2144, 3168), (5, 128, 1216, 2240, 3264))
_ODD = (7, 157, 1181, 2205, 3229)


def name_free_sizes(proto: Any, model: keras.Model, signature: Signature) -> None:
    """Calls free sizes of inputs 'batch' and NAME_axis_2, and those of outputs alike, in place.

    An output's size gets an input's name where the shapes that Keras infers, or ONNX does, say
    that the two are the same.
    """
    import onnx

    for values in (proto.graph.input, proto.graph.output):
        for value in values:
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if not size.HasField("dim_value"):
                    size.Clear()
                    if values is proto.graph.input:
                        size.dim_param = _name(value.name, axis)
    by_keras = _sizes_of_outputs(model, signature)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for number, value in enumerate(proto.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_value"):
                continue
            known = by_keras[number].get(axis) if by_keras else None
            found = inferred.graph.output[number].type.tensor_type.shape.dim[axis].dim_param
            if known is None and found and not found.startswith("unk__"):
                known = found
            size.dim_param = known or f"{value.name}_axis_{axis}"


def _name(name: str, axis: int) -> str:
    return f"{name}_axis_{axis}" if axis else "batch"


def _sizes_of_outputs(model: keras.Model, signature: Signature) -> list[dict[int, str]]:
    """Of each output, the names of its sizes that are those of inputs; nothing where Keras fails.

    Sizes of two inputs are unlike at first; where a model does not take that, they are alike.
    """
    for between_inputs in (32, 0):
        try:
            found = [_of_outputs(model, signature, sizes, between_inputs) for sizes in _TRIED]
        except Exception:  # what the model's own code, or a layer, makes of such sizes
            continue
        with contextlib.suppress(Exception):  # of a net that takes no odd ones
            found.append(_of_outputs(model, signature, _ODD, between_inputs))
        same = [
            {axis: set.intersection(*(names[axis] for names in every)) for axis in every[0]}
            for every in zip(*found, strict=True)
        ]
        return [{a: min(names) for a, names in axes.items() if len(names) == 1} for axes in same]
    return []


def _of_outputs(
    model: keras.Model, signature: Signature, sizes: tuple[int, ...], between_inputs: int
) -> list[dict[int, set[str]]]:
    """Of each output, by axis, the names of all that have its size when inputs have these."""
    names: dict[int | None, set[str]] = {}
    tensors = []
    for number, spec in enumerate(signature.inputs):
        shape = list(spec.shape)
        for axis, size in enumerate(shape):
            if size is None:
                shape[axis] = sizes[axis] + (number * between_inputs if axis else 0)
                names.setdefault(shape[axis], set()).add(_name(spec.name, axis))
        tensors.append(keras.KerasTensor(shape, spec.dtype))
    arguments = keras.tree.pack_sequence_as(signature.structure, tensors)
    outputs = keras.tree.flatten(model.compute_output_spec(*arguments, training=False))
    return [dict(enumerate(names.get(size, set()) for size in y.shape)) for y in outputs]
