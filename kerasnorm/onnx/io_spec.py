"""`Signature`: what goes into a model and what comes out, flat and by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.errors import ExportError
from kerasnorm.keras_private import input_layer

# Of axes that a model leaves open, where it is only asked whether it can be called.
_FREE_SIZE = 32


@dataclass(frozen=True)
class Spec:
    """Name, shape (None where the size is free) and dtype of one input."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """The inputs of a model as a flat list, and how to call the model on one.

    Args:
        inputs: One `Spec` for each tensor that goes in, in the order of `keras.tree.flatten`.
        structure: The arguments of the call: a tuple, each entry nested as the model takes it.
    """

    inputs: tuple[Spec, ...]
    structure: tuple[Any, ...]

    @property
    def batch_size(self) -> int | None:
        """The one size of batches that the model can be called on; None where it takes any."""
        return next((spec.shape[0] for spec in self.inputs if spec.shape[0] is not None), None)

    def call(self, model: keras.Model, tensors: Sequence[Any]) -> Any:
        """The model's answer at inference, nested as the model returns it."""
        arguments = keras.tree.pack_sequence_as(self.structure, list(tensors))
        return model(*arguments, training=False)


def signature_of(model: keras.Model, inputs: Any = None) -> Signature:
    """How a model is called.

    Functional and Sequential models state it. Any other model shows it by the shapes of its
    first call, or by `inputs`.

    Args:
        model: A Keras model.
        inputs: What the model is called on, or None.

    Raises:
        ExportError: If the model was never built or called, or takes text or sparse tensors.
    """
    tensors = _declared_inputs(model)
    if tensors is not None:
        structure = (_declared_structure(model, tensors),)
        specs = [Spec(input_layer(t).name, (None, *t.shape[1:]), t.dtype) for t in tensors]
        own = next((t.shape[0] for t in tensors if t.shape[0] is not None), None)
        # A batch size that the model states may be where it was built, and not what it needs.
        if own is not None and not _takes(model, structure, specs, own + 1):
            specs = [Spec(spec.name, (own, *spec.shape[1:]), spec.dtype) for spec in specs]
        if any(getattr(t, "sparse", False) for t in tensors):
            raise ExportError("ONNX has no sparse inputs.", model=model.name)
    elif inputs is not None:
        arrays = keras.tree.map_structure(np.asarray, inputs)
        several = isinstance(arrays, (list, tuple)) and len(_parameters(model)) == len(arrays) > 1
        structure = keras.tree.map_structure(lambda _: 0, tuple(arrays) if several else (arrays,))
        specs = [
            Spec(name, (None, *array.shape[1:]), str(array.dtype))
            for name, array in zip(
                _argument_names(model, structure), keras.tree.flatten(arrays), strict=True
            )
        ]
    else:
        shapes = _first_call_shapes(model)
        structure = keras.tree.map_shape_structure(lambda _: 0, shapes)
        flat: list[tuple] = []
        keras.tree.map_shape_structure(flat.append, shapes)
        # Inputs arrive in the dtype of the variables, whatever the model computes in.
        specs = [
            Spec(name, (None, *shape[1:]), model.variable_dtype)
            for name, shape in zip(_argument_names(model, structure), flat, strict=True)
        ]
    for spec in specs:
        if spec.dtype == "string":
            raise ExportError(
                f"ONNX models made here take numbers. Input '{spec.name}' takes text.",
                model=model.name,
                hint="Export the part of the model that follows the text preprocessing.",
            )
    names = unique_names([spec.name for spec in specs])
    return Signature(
        tuple(Spec(n, s.shape, s.dtype) for n, s in zip(names, specs, strict=True)), structure
    )


def output_names(model: keras.Model, outputs: Any, taken: Iterable[str] = ()) -> list[str]:
    """A name for each tensor of a model's answer: dict keys, else names of the output layers.

    Args:
        model: A Keras model.
        outputs: What it returned, nested.
        taken: Names that are in use.
    """
    flat = keras.tree.flatten(outputs)
    if isinstance(outputs, Mapping):
        names = [
            "_".join(str(part) for part in path)
            for path, _ in keras.tree.flatten_with_path(outputs)
        ]
    elif isinstance(model, keras.Sequential):
        names = [model.layers[-1].name]
    else:
        names = list(getattr(model, "output_names", ()))
    if len(names) != len(flat):
        names = ["output"] if len(flat) == 1 else [f"output_{i}" for i in range(len(flat))]
    return unique_names(names, taken)


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The same names, those that are in use already followed by _1, _2, …"""
    used = set(taken)
    result = []
    for name in names:
        candidate, number = name, 0
        while candidate in used:
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate)
        result.append(candidate)
    return result


def _keys(inputs: Any) -> str:
    return f", {list(inputs)}" if isinstance(inputs, Mapping) else ""


def arrays_for(signature: Signature, inputs: Any, model: keras.Model) -> list[np.ndarray]:
    """Given inputs as a flat list of arrays in the signature's order and dtypes.

    Args:
        signature: How the model is called.
        inputs: An array, a list of arrays, a dict by input name, or nested as the model takes
            it. All have the same number of rows. What a dict has beside the inputs is left out;
            of one input and one array the name is not looked at.
        model: The model, named in errors.

    Raises:
        ExportError: If number, names or shapes are not those of the model's inputs.
    """
    names = [spec.name for spec in signature.inputs]
    flat = _in_order(signature, inputs, model)
    if len(flat) != len(names):
        raise ExportError(
            f"`inputs` must hold one array for each of the inputs {names}. "
            f"Received: {len(flat)} arrays{_keys(inputs)}.",
            model=model.name,
        )
    arrays = []
    for spec, value in zip(signature.inputs, flat, strict=True):
        array = np.asarray(value)
        fits = array.ndim == len(spec.shape) and all(
            want in (None, have) for want, have in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or not len(array):
            raise ExportError(
                f"`inputs` must fit the shape {spec.shape} of input '{spec.name}'. "
                f"Received: shape {array.shape}.",
                model=model.name,
            )
        arrays.append(array.astype(spec.dtype))
    if len({len(array) for array in arrays}) > 1:
        raise ExportError(
            f"All `inputs` must have the same number of rows. "
            f"Received: {[len(array) for array in arrays]}.",
            model=model.name,
        )
    return arrays


def _in_order(signature: Signature, inputs: Any, model: keras.Model) -> list[Any]:
    """Given inputs as a flat list; what has names, by those: never by its place."""
    names = [spec.name for spec in signature.inputs]
    structure = signature.structure[0] if len(signature.structure) == 1 else signature.structure
    flat = keras.tree.flatten(inputs)
    # the keys that the model is called with say more than the names of its input layers
    keys = structure if isinstance(structure, Mapping) else ()
    if isinstance(inputs, Mapping) and keys and set(keys) <= set(inputs):
        inputs = {key: inputs[key] for key in keys}
        flat = keras.tree.flatten(inputs)
    elif isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return [inputs[name] for name in names]
    if _paths(inputs) == _paths(structure) or not _has_names(inputs):
        return flat
    if len(names) == len(flat) == 1:
        return flat
    given = ", ".join(f"{name!r}: …" for name in keys or names)
    raise ExportError(
        f"`inputs` must have the inputs of the model by name: {list(keys or names)}. "
        f"Received: {len(flat)} arrays{_keys(inputs)}.",
        model=model.name,
        hint=f"Pass `inputs={{{given}}}`, or a list of arrays in that order.",
    )


def _paths(nested: Any) -> list[tuple]:
    return [path for path, _ in keras.tree.flatten_with_path(nested)]


def _has_names(nested: Any) -> bool:
    return any(isinstance(part, str) for path in _paths(nested) for part in path)


def _declared_inputs(model) -> list[Any] | None:
    try:
        return model.inputs or None
    except AttributeError:
        return None


def _declared_structure(model, tensors):
    if isinstance(model, keras.Sequential):
        return tensors[0] if len(tensors) == 1 else tensors
    return model.input


def _takes(model, structure, specs: list[Spec], rows: int) -> bool:
    """Whether a model can be called on a batch of a size."""
    shapes = [[rows, *(size or _FREE_SIZE for size in spec.shape[1:])] for spec in specs]
    try:
        zeros = [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, specs, strict=True)]
        with keras.StatelessScope(collect_losses=True, initialize_variables=False):
            Signature(tuple(specs), structure).call(model, zeros)
    except Exception:  # whatever layers say of a size that they were not made for
        return False
    return True


def _first_call_shapes(model) -> tuple[Any, ...]:
    config = model.get_build_config() if model.built else None
    if not config:
        raise ExportError(
            "The model must have been built or called, so that its inputs are known. "
            "Received: a model that never was.",
            model=model.name,
            hint="Call it once on data, or pass `inputs=`.",
        )
    shapes = tuple(config["shapes_dict"].values() if "shapes_dict" in config else config.values())
    if len(shapes) < len(_parameters(model)):
        raise ExportError(
            f"The model takes the arguments {_parameters(model)}, and Keras keeps the shape of the "
            "first only.",
            model=model.name,
            hint="Pass `inputs=`, one array for each.",
        )
    return shapes


def _parameters(model) -> list[str]:
    """The arguments that a call of the model cannot do without."""
    return [
        parameter.name
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in ("training", "mask")
    ]


def _argument_names(model, structure) -> list[str]:
    """Dict keys where the model takes a dict, else the names of the arguments of its `call`."""
    parameters = _parameters(model)
    names = []
    for path, _ in keras.tree.flatten_with_path(structure):
        argument, *inside = path
        argument = parameters[argument] if argument < len(parameters) else f"input_{argument}"
        keys = [str(part) for part in inside]
        if inside and isinstance(inside[0], str):
            names.append("_".join(keys))
        else:
            names.append("_".join([argument, *keys]))
    return names
