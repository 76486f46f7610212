"""Fit one layer of a swapped model to what the source has in its place.

Each fit is run on a stream: a function that gives, batch by batch and as often as it is called,
(x, t): what the swapped model feeds the layer, and the source's activation that it is to
reproduce. One sample in five is held out from the sums; a step is kept where it fits those better
than what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasnorm.fit.im2col import Rows
from kerasnorm.fit.regression import Lines, Ridge
from kerasnorm.fit.split import FROM_FITS, from_fits
from kerasnorm.graph.activation_store import as_array
from kerasnorm.layers import CosineNorm, LayerNorm
from kerasnorm.layers.linear_ops import has_rows
from kerasnorm.math.r_squared import r_squared

Stream = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]

# Shares of the features' mean square that kernels are drawn to where they came from.
_SHARES = (1e-3, 1e-2, 1e-1)
# The same for a kernel in front of a LayerNorm, each of which costs a pass over the data.
_KERNEL_SHARE = 1e-2
# Rows a regression sees: some for each unknown, within what is worth its time, which grows with
# rows times features.
_ROWS_PER_FEATURE, _LEAST_ROWS, _MOST_ROWS, _MOST_ENTRIES = 12, 16384, 32768, 2**24
# Where maps are large, a row comes from at least as many positions; the other batches are skipped.
_POSITIONS_PER_ROW, _LEAST_SAMPLES = 8, 32
_HELD_ROWS = 4096
_LEAST_EPSILON = 1e-5


@dataclass
class Sampling:
    """How many rows to take of each batch, and from which."""

    batches: int
    random: np.random.Generator

    def rows(self, size: int) -> int:
        """Rows of each batch for a regression with this many features."""
        total = int(np.clip(_ROWS_PER_FEATURE * size, _LEAST_ROWS, _MOST_ROWS))
        total = min(total, _MOST_ENTRIES // size)
        return -(-total // self.batches)

    def step(self, shape: tuple[int, ...], size: int) -> int:
        """Of how many batches, with outputs of this shape, one is enough to sample rows from.

        All are read where a batch may have no sample that is held out, and as many as it takes to
        see some dozens of samples.
        """
        positions, samples = int(np.prod(shape[:-1])), shape[0]
        if samples < FROM_FITS:
            return 1
        most = max(1, self.batches * samples // _LEAST_SAMPLES)
        return min(self.batches, most, max(1, positions // (_POSITIONS_PER_ROW * self.rows(size))))


class _Held:
    """The rows that are held out."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._count = 0

    def add(self, **rows: np.ndarray) -> None:
        self._count += next(iter(rows.values())).shape[-2]
        if self._count <= _HELD_ROWS or not self._parts:
            for name, part in rows.items():
                self._parts.setdefault(name, []).append(part)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate(self._parts[name], axis=-2)


def _split(index, first: int):
    """Which of some sampled rows are fitted: by sample, so that held-out samples are unseen."""
    return ~from_fits(first + index[0])


def fit_linear(layer: Any, source: Any, stream: Stream, sampling: Sampling) -> float:
    """Refit a linear layer to the pre-activation of its source, drawn toward its own kernel.

    Args:
        layer: The layer; its kernel and bias are set.
        source: The source's layer, whose inputs the stream gives as t.
        stream: See the module.
        sampling: See `Sampling`.

    Returns:
        R² on held-out rows.
    """
    rows, original = Rows(layer), Rows(source)
    ridge, held = _ridge_sums(rows, _pre_activation(original), stream, sampling)
    prior = rows.matrix()
    bias = _bias_of(layer, rows)
    found = [(prior, bias)]
    if layer.bias is not None:
        found += [ridge.solve(prior, share) for share in _SHARES]
    matrix, offset, score = _best(found, held)
    rows.assign(matrix)
    if layer.bias is not None:
        layer.bias.assign(offset.reshape(layer.bias.shape))
    return score


def fit_cosine(
    layer: CosineNorm, source: Any, stream: Stream, sampling: Sampling, share: float
) -> float:
    """Fit kernel, gain and bias of a CosineNorm: y = u·x̂ + b is linear in u = g·w/‖w‖.

    Args:
        layer: The layer, its wrapped kernel pointing where it is thought to point.
        source: The source's linear layer whose inputs the stream gives as t; None where it gives
            the activation itself.
        stream: See the module.
        sampling: See `Sampling`.
        share: Damping as a share of the mean ‖x‖².

    Returns:
        R² on held-out rows.
    """
    inner = layer.layer
    if not has_rows(inner):
        return fit_gain_and_bias(layer, stream, sampling)
    rows = Rows(inner)
    if share:
        layer.damping = float(np.sqrt(share * _mean_square(layer, rows, stream, sampling)))
    targets = rows.outputs if source is None else _pre_activation(Rows(source))

    def normalized(x: np.ndarray, index) -> np.ndarray:
        square = _squared_lengths(layer, rows, x, index) + layer.damping**2
        return rows.inputs(x, index) / np.sqrt(np.where(square > 0, square, 1.0))

    ridge, held = _ridge_sums(rows, targets, stream, sampling, normalized)
    direction = rows.matrix() / _lengths(layer, rows)
    lines = Lines()
    lines.add(rows.flat(held["x"] @ direction), rows.flat(held["y"]))
    gain, _ = lines.solve()
    prior = direction * rows.grouped(gain[None])
    found = [ridge.solve(prior, share) for share in _SHARES]
    matrix, offset, score = _best(found, held)
    dead = ~matrix.any(axis=1, keepdims=True)
    rows.assign(matrix)
    length = np.where(dead, 0.0, _lengths(layer, rows))
    rows.assign(np.where(dead, direction, matrix / np.where(dead, 1.0, length)))
    layer.g.assign(length.reshape(layer.g.shape))
    inner.bias.assign(offset.reshape(inner.bias.shape))
    return score


def fit_gain_and_bias(layer: Any, stream: Stream, sampling: Sampling) -> float:
    """Fit the gain and bias of a LayerNorm or CosineNorm, one each per channel.

    Returns:
        R² on held-out rows.
    """
    face = _Face(layer)
    start = face.values()
    face.assign(np.ones(face.size), np.zeros(face.size))
    lines, held, first = Lines(), _Held(), 0
    for x, t in stream():
        z = face.channels_last(ops.convert_to_numpy(layer(x, training=False)))
        t = face.channels_last(t)
        count = min(sampling.rows(1), int(np.prod(z.shape[:-1])))
        chosen = sampling.random.choice(int(np.prod(z.shape[:-1])), count, replace=False)
        index = np.unravel_index(np.sort(chosen), z.shape[:-1])
        fitted = _split(index, first)
        lines.add(z[index][fitted], t[index][fitted])
        held.add(z=z[index][~fitted], t=t[index][~fitted])
        first += len(x)
    candidates = [start, lines.solve()]
    scores = [r_squared(held["t"], held["z"] * gain + bias) for gain, bias in candidates]
    best = int(np.argmax(scores))
    face.assign(*candidates[best])
    return scores[best]


def fit_layer_norm(
    plain: Any, norm: Any, stream: Stream, sampling: Sampling, share: float
) -> float:
    """Fit a LayerNorm and the linear layer in front of it.

    With μ_n, σ_n the statistics of the map U·x + c as it is and ḡ = mean σ_n,

        t ≈ ḡ·(U·x + c − μ_n)/σ_n + b

    is linear in U and b: the regression of t + ḡ·(μ_n − c)/σ_n on ḡ·x/σ_n. Gain and bias follow by
    least squares, with U and without.

    Args:
        plain: The linear layer, which takes no activation and whose kernel is set.
        norm: The LayerNorm that alone reads it; its gain and bias are set.
        stream: See the module.
        sampling: See `Sampling`.
        share: Damping: ε as a share of the mean σ².

    Returns:
        R² on held-out rows.
    """
    rows = Rows(plain)
    start = (_array(norm.gamma), _array(norm.beta))
    before = _LayerNormPass(plain, norm, rows, stream, sampling, regress=True)
    norm.epsilon = max(share, _LEAST_EPSILON) * before.mean_square or norm.epsilon
    kernel, bias = rows.matrix(), _array(plain.bias)
    candidates = [
        (before.score(*start), start, kernel),
        (before.score(*before.line), before.line, kernel),
    ]
    refitted = before.refitted(kernel)
    if refitted is not None:
        rows.assign(refitted)
        after = _LayerNormPass(plain, norm, rows, stream, sampling)
        candidates.append((after.score(*after.line), after.line, refitted))
    score, (gain, shift), matrix = max(candidates, key=lambda candidate: candidate[0])
    rows.assign(matrix)
    plain.bias.assign(bias)
    norm.gamma.assign(gain.reshape(norm.gamma.shape))
    norm.beta.assign(shift.reshape(norm.beta.shape))
    return score


class _LayerNormPass:
    """One pass over a stream: statistics of the map, line from z to t, sums for a new kernel."""

    def __init__(self, plain, norm, rows: Rows, stream, sampling: Sampling, regress=False):
        self._rows = rows
        self._lines, self._held, self._ridge = Lines(), _Held(), Ridge()
        deviations: list[np.ndarray] = []
        first = 0
        for number, (x, t) in enumerate(stream()):
            step = sampling.step(rows.output_shape(x), rows.size)
            if number % step:
                first += len(x)
                continue
            y = plain(x)
            center, deviation = _moments(norm, y)
            deviations.append(deviation.reshape(len(x), -1).mean(1, dtype=np.float64))
            y = as_array(y)
            index = rows.sample(y.shape, step * sampling.rows(rows.size), sampling.random)
            fitted = _split(index, first)
            first += len(x)
            value, target, center, deviation = (
                rows.outputs(np.broadcast_to(v, y.shape), index).astype(np.float64)
                for v in (y, t, center, deviation)
            )
            z = (value - center) / np.sqrt(np.square(deviation) + norm.epsilon)
            self._lines.add(rows.flat(z[:, fitted]), rows.flat(target[:, fitted]))
            self._held.add(z=z[:, ~fitted], t=target[:, ~fitted])
            if regress:
                safe = np.where(deviation > 0, deviation, 1.0)
                scaled = rows.inputs(x, index) / safe[:, :, :1]
                known = (center - _bias_of(plain, rows)[:, None]) / safe
                wanted = np.concatenate([target, known], axis=2)
                self._ridge.add(scaled[:, fitted], wanted[:, fitted])
        every = np.concatenate(deviations)
        self.mean_deviation = float(every.mean())
        self.mean_square = float(np.square(every).mean())
        self.line = self._lines.solve()

    def score(self, gain: np.ndarray, bias: np.ndarray) -> float:
        z, t = self._rows.flat(self._held["z"]), self._rows.flat(self._held["t"])
        return r_squared(t, z * gain.reshape(-1) + bias.reshape(-1))

    def refitted(self, prior: np.ndarray) -> np.ndarray | None:
        """A new kernel, drawn toward the old one; None where the map does not vary."""
        scale = self.mean_deviation
        if not scale:
            return None
        # of (t + ḡ·m) on ḡ·x: t and m have the same features, so that their kernels add up
        both = np.concatenate([prior * scale, np.zeros_like(prior)], axis=2)
        to_target, to_mean = np.split(self._ridge.solve(both, _KERNEL_SHARE)[0], 2, axis=2)
        return to_target / scale + to_mean


class _Face:
    """The gain and bias of a LayerNorm or CosineNorm, by one name each."""

    def __init__(self, layer: Any):
        cosine = isinstance(layer, CosineNorm)
        self._gain = layer.g if cosine else layer.gamma
        self._bias = layer.layer.bias if cosine else layer.beta
        self.size = int(np.prod(self._gain.shape))
        if cosine:
            first = getattr(layer.layer, "data_format", "channels_last") == "channels_first"
            self._axis = 1 if first else -1
        else:
            self._axis = layer.channel_axis if layer.axis == "sample" else layer.axis

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        return _array(self._gain).reshape(-1), _array(self._bias).reshape(-1)

    def assign(self, gain: np.ndarray, bias: np.ndarray) -> None:
        self._gain.assign(gain.reshape(self._gain.shape))
        self._bias.assign(bias.reshape(self._bias.shape))

    def channels_last(self, y: np.ndarray) -> np.ndarray:
        y = np.moveaxis(y, self._axis, -1)
        return y if y.shape[-1] == self.size else y.reshape(*y.shape[:-2], self.size)


def _ridge_sums(rows: Rows, targets, stream, sampling: Sampling, features=None):
    ridge, held, first = Ridge(), _Held(), 0
    for x, t in stream():
        index = rows.sample(rows.output_shape(x), sampling.rows(rows.size), sampling.random)
        fitted = _split(index, first)
        row = rows.inputs(x, index) if features is None else features(x, index)
        target = targets(t, index)
        ridge.add(row[:, fitted], target[:, fitted])
        held.add(x=row[:, ~fitted], y=target[:, ~fitted])
        first += len(x)
    return ridge, held


def _pre_activation(source: Rows):
    matrix, bias = source.matrix(), _bias_of(source.layer, source)

    def targets(x: np.ndarray, index) -> np.ndarray:
        return source.inputs(x, index) @ matrix + bias[:, None]

    return targets


def _best(found, held: _Held) -> tuple[np.ndarray, np.ndarray, float]:
    """The (matrix, offset) that fits the held-out rows best, and how well it does."""
    x, y = held["x"], held["y"]
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)
    scores = []
    for matrix, offset in found:
        answer = x @ matrix + offset[:, None]
        scores.append(r_squared(flat, answer.transpose(1, 0, 2).reshape(flat.shape)))
    best = int(np.argmax(scores))
    return (*found[best], scores[best])


def _bias_of(layer: Any, rows: Rows) -> np.ndarray:
    """The bias as (groups, units)."""
    channels = rows.groups * rows.units
    bias = np.zeros(channels) if layer.bias is None else _array(layer.bias).reshape(-1)
    return rows.grouped(bias[None])[:, 0]


def _lengths(layer: CosineNorm, rows: Rows) -> np.ndarray:
    """‖w‖ as (groups, 1, units)."""
    return rows.grouped(_array(layer.lengths()).reshape(1, -1))


def _squared_lengths(layer: CosineNorm, rows: Rows, x: np.ndarray, index) -> np.ndarray:
    """‖x‖² of what the layer contracts there, as (groups or 1, rows, 1)."""
    x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
    # squares of entries up to 1 neither vanish nor overflow
    largest = float(np.abs(x).max()) or 1.0
    squares = layer.contraction(x.ndim).squared_lengths(ops.convert_to_tensor(x / largest))
    found = rows.at(as_array(squares), index).astype(np.float64) * largest**2
    return found[None] if found.shape[1] == 1 else rows.grouped(found)[..., :1]


def _mean_square(layer: CosineNorm, rows: Rows, stream: Stream, sampling: Sampling) -> float:
    found = []
    for x, _ in stream():
        index = rows.sample(rows.output_shape(x), sampling.rows(1), sampling.random)
        found.append(_squared_lengths(layer, rows, x, index).mean())
    return float(np.mean(found))


def _moments(norm: LayerNorm, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over what a LayerNorm normalizes together."""
    axes = tuple(range(1, len(y.shape))) if norm.axis == "sample" else norm.axis
    y = ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
    center, variance = ops.moments(y, axes, keepdims=True)
    return ops.convert_to_numpy(center), np.sqrt(ops.convert_to_numpy(variance))


def _array(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
