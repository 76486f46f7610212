"""Compare a swapped model with its source where it counts: at every BatchNorm call's output.

A whole-model check proves little: behind a softmax, a swapped network agrees to 1e-7 with one
beta set to zero.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from kerasnorm.graph import sites as match
from kerasnorm.keras_private import has_graph

# Largest |Δ| over a tensor's own standard deviation. Folding is exact in real numbers; float32
# leaves 1e-6 to 1e-5 in networks of up to 200 layers.
SITE_TOLERANCE = 1e-4
# The same in float64, where random weights that amplify rounding 10^7 times leave 2e-9 of it; what
# is wrong in the algebra is off by a million times as much.
FLOAT64_TOLERANCE = 1e-7
# Of a tensor's size: 1e-4 of that is a few of float32's rounding steps.
LEAST_SPREAD = 1e-2


@contextlib.contextmanager
def watched(layers_to_watch, before=None) -> Iterator[dict[int, list[np.ndarray]]]:
    """Collect the outputs of layers, in float64, by `id`, call after call, while models run.

    Args:
        before: Called with each watched layer and its input before it is called.
    """
    outputs: dict[int, list[np.ndarray]] = {id(layer): [] for layer in layers_to_watch}

    def watch(layer):
        original = layer.call

        @functools.wraps(original)
        def call(*args, **kwargs):
            if before is not None:
                before(layer, args[0])
            result = original(*args, **kwargs)
            outputs[id(layer)].append(to_float64(result))
            return result

        layer.call = call  # not `__call__`, which TimeDistributed passes by

    unique = {id(layer): layer for layer in layers_to_watch}.values()
    try:
        for layer in unique:
            watch(layer)
        yield outputs
    finally:
        for layer in unique:
            layer.__dict__.pop("call", None)


def to_float64(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor)).astype("float64")


def all_layers(model) -> list[keras.Layer]:
    """Every layer of a model and of the models nested in it, each once."""
    found: dict[int, keras.Layer] = {}
    for layer in model._flatten_layers(include_self=False):
        found.setdefault(id(layer), layer)
    return list(found.values())


def layer_at(model, path: str):
    """The layer of a report's path, "backbone/conv"."""
    for name in path.split("/"):
        inside = model._flatten_layers(include_self=False, recursive=False)
        model = next(layer for layer in inside if layer.name == name)
    return model


def as_declared(model, x):
    """`x` in the structure of the model's inputs, which old files declare as a list of one."""
    if not has_graph(model):
        return x
    if isinstance(model, keras.Sequential):
        return keras.tree.flatten(x)[0]
    return keras.tree.pack_sequence_as(model.input, keras.tree.flatten(x))


@contextlib.contextmanager
def computing_in(policy: str | None, *models) -> Iterator[None]:
    """Let every layer of some models compute in another dtype meanwhile, on the same weights."""
    wide = keras.DTypePolicy(policy or "float32")
    wide._variable_dtype = "float32"  # else Keras would not cast them
    layers_of = [layer for model in models for layer in (model, *all_layers(model))]
    before = {}
    for layer in layers_of if policy else []:
        if layer.quantization_mode is None:
            before[layer] = layer.dtype_policy
            layer.dtype_policy = wide
    try:
        yield
    finally:
        for layer, own in before.items():
            layer.dtype_policy = own


def linearize_outputs(*models) -> None:
    """Take away final activations, which hide differences before them."""
    for model in models:
        for layer in model.layers[-2:]:
            if getattr(layer, "activation", None) in (
                keras.activations.softmax,
                keras.activations.sigmoid,
            ):
                layer.activation = keras.activations.linear


def _relative(expected: np.ndarray, received: np.ndarray) -> float:
    if expected.shape != received.shape:
        return float("inf")
    spread = max(expected.std(), LEAST_SPREAD * np.abs(expected).max())
    return float(np.abs(expected - received).max() / (spread or 1.0))


def site_differences(source, swap, x, relative=None) -> dict[str, float]:
    """max|Δ| / std of the source's tensor, for each site and each output of the model.

    Every BatchNorm call is compared with the call of the layer that, by the report, took its
    place; by a measure of its own, if one is given.
    """
    sites = _visible_sites(swap)
    pairs = [_twin(swap, site) for site in sites]
    return _differences(source, swap.model, sites, pairs, x, relative=relative or _relative)


def own_rounding(source, swap, x) -> dict[str, float]:
    """The same between the source in float32 and itself in float64: what rounding alone does.

    Where TensorFlow cannot compute in float64 (convolutions with channels first, on the CPU),
    between the source and itself with every weight moved by one rounding step.
    """
    sites = _visible_sites(swap)
    norms = [layer_at(source, _layer_path(site)) for site in sites]
    try:
        return _differences(source, source, sites, norms, x, policy="float64")
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        weights = source.get_weights()
        rng = np.random.default_rng(0)
        moved = copy.deepcopy(weights)
        for weight in moved:
            if weight.dtype == np.float32:
                weight *= 1 + 2**-23 * rng.choice([-1, 1], weight.shape).astype("float32")
        before = _watched_run(source, norms, source, x)
        source.set_weights(moved)
        try:
            return _compared(sites, norms, norms, before, _watched_run(source, norms, source, x))
        finally:
            source.set_weights(weights)


def allowed(
    own: float,
    tolerance: float = SITE_TOLERANCE,
    most: float = 10 * SITE_TOLERANCE,
    roundings: float = 3,
) -> float:
    """How far a swapped model may be off where the source's own rounding is `own`.

    Up to `most`, and `roundings` times `own`: two float32 computations are apart by the sum of what
    each is off, and the largest of 10^5 such sums by up to three times the largest of one.
    """
    return max(tolerance, min(most, roundings * own))


def assert_exact(source, swap, x, tolerance: float = SITE_TOLERANCE, **limits: float) -> None:
    """Every site and every output agrees, relative to its own spread, but for rounding."""
    differences = site_differences(source, swap, x)
    off = {name: d for name, d in differences.items() if not d <= tolerance}
    if off:
        own = own_rounding(source, swap, x)
        off = {n: d for n, d in off.items() if not d <= allowed(own[n], tolerance, **limits)}
    assert not off, off


def _visible_sites(swap) -> list:
    """The sites in graphs; what is hidden in other layers stays as it is."""
    return [site for site in swap.report.sites if site.rule != "graph"]


def _twin(swap, site) -> keras.Layer:
    """The layer that does the work of a site now."""
    path = _layer_path(site)
    if site.verdict == "refused":
        return layer_at(swap.model, path)
    if site.across:
        return layer_at(swap.model, swap.report.layers[site.across[0]])
    if site.partner:
        return layer_at(swap.model, swap.report.layers[site.partner])
    try:
        # one call of the layer stays BatchNorm, and the name with it
        return layer_at(swap.model, path + "_swapped")
    except StopIteration:
        return layer_at(swap.model, path)


def _differences(
    source, other, sites, pairs, x, policy=None, relative=_relative
) -> dict[str, float]:
    norms = [layer_at(source, _layer_path(site)) for site in sites]
    expected, outputs = _watched_run(source, norms, source, x)
    with computing_in(policy, other):
        received, answers = _watched_run(other, pairs, source, x)
    return _compared(sites, norms, pairs, (expected, outputs), (received, answers), relative)


def _watched_run(model, layers_to_watch, declared, x):
    """What some layers and the model put out."""
    with watched(layers_to_watch) as seen:
        outputs = keras.tree.flatten(model(as_declared(declared, x), training=False))
    return seen, [to_float64(output) for output in outputs]


def _compared(sites, norms, pairs, of_source, of_other, relative=_relative) -> dict[str, float]:
    (expected, outputs), (received, answers) = of_source, of_other
    differences = {}
    for number, site in enumerate(sites):
        together = {
            id(twin) for norm, twin in zip(norms, pairs, strict=True) if norm is norms[number]
        }
        a, b = expected[id(norms[number])], [y for twin in together for y in received[twin]]
        assert a, f"{site.name} was never called"
        # Keras runs the calls of a shared layer in an order that depends on the graph's depth,
        # which the swap changes: each answer must be among those of the other model.
        assert len(a) == len(b) or site.across, (site.name, len(a), len(b))
        differences[site.name] = max(min(relative(x, y) for y in b) for x in a)
    for number, (output, answer) in enumerate(zip(outputs, answers, strict=True)):
        differences[f"output {number}"] = relative(output, answer)
    return differences


def assert_no_batch_norm(model) -> None:
    left = [layer.name for layer in all_layers(model) if match.is_batch_norm(layer)]
    assert not left, left


def _layer_path(site) -> str:
    return site.name.split("#")[0]


def randomize(model, x, seed: int = 0, decades: float = 0) -> bool:
    """Give every BatchNorm non-trivial weights under which signals stay alive.

    gamma of both signs and some of it zero, beta random, moving statistics those of its own input
    on `x` times factors in [0.5, 2]. One pass, so that each sees what the ones before it put out.
    On request gamma is larger or smaller by up to so many powers of ten.

    Returns:
        Whether what they normalize is finite: deep models overflow in float16.
    """
    rng = np.random.default_rng(seed)
    norms = [layer for layer in all_layers(model) if match.is_batch_norm(layer)]
    seen = set()
    finite = True

    def assign(layer, tensor):
        nonlocal finite
        if id(layer) in seen:
            return
        seen.add(id(layer))
        values = to_float64(tensor)
        finite &= bool(np.isfinite(values).all())
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
        others = tuple(a for a in range(values.ndim) if a != axis % values.ndim)
        size = values.shape[axis]
        if layer.gamma is not None:
            gamma = rng.normal(size=size)
            if decades:
                gamma *= 10 ** rng.uniform(-decades, decades, size)
            layer.gamma.assign(np.where(rng.random(size) < 0.1, 0.0, gamma))
        if layer.beta is not None:
            layer.beta.assign(rng.normal(size=size))
        layer.moving_mean.assign(values.mean(others) * 2 ** rng.uniform(-1, 1, size))
        layer.moving_variance.assign(values.var(others) * 2 ** rng.uniform(-1, 1, size))

    with watched(norms, before=assign):
        model(x, training=False)
    return finite


def every_site(record) -> bool:
    """For `sites=`: what is named gets the norm that was asked for, at the input too."""
    return True
