"""The table of layers that the contract test runs: each with its oracle in NumPy float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import linear_oracle as linear
import numpy as np
from helpers import (
    direction,
    gru,
    layer_norm_gru,
    layer_norm_lstm,
    layer_norm_simple_rnn,
    lstm,
    simple_rnn,
    standardize,
)
from keras import layers as L

from kerasnorm import Affine, BatchNorm, CosineNorm, GroupNorm, LayerNorm, WeightNorm
from kerasnorm.layers import LayerNormGRUCell, LayerNormLSTMCell, LayerNormSimpleRNNCell


@dataclass
class Case:
    """A layer, the shape of its input, and what it must compute.

    oracle(x, *layer.weights) is the output. `integers` is the number of distinct integer inputs,
    for layers that look up. `call` are further call arguments.
    """

    name: str
    make: Callable[[], keras.Layer]
    shape: tuple[int, ...]
    oracle: Callable[..., np.ndarray]
    call: dict[str, Any] = field(default_factory=dict)
    integers: int | None = None

    @property
    def recurrent(self) -> bool:
        return any(kind in self.name for kind in ("RNN", "LSTM", "GRU"))


@dataclass
class Linear:
    """A linear layer as the oracles see it.

    norm_axes are those of one unit's weight vector; size is their product. place(u) lays a value
    per unit (the kernel's shape, ones at norm_axes) out over the output, place_bias the bias.
    """

    name: str
    make: Callable[[], keras.Layer]
    shape: tuple[int, ...]
    bilinear: Callable
    norm_axes: tuple[int, ...]
    place: Callable
    place_bias: Callable
    size: int


def _channels_last(name, make, shape, bilinear, norm_axes, size):
    flat = lambda u: u.reshape(-1)  # noqa: E731
    return Linear(name, make, shape, bilinear, norm_axes, flat, flat, size)


def _conv(cls, *args, shape, oracle, norm_axes, size, **kwargs):
    rank = len(shape) - 2
    keywords = {
        key: value if isinstance(value, (str, int)) else tuple(value)
        for key, value in kwargs.items()
    }
    options = "-".join(f"{value}" for value in kwargs.values())
    strides = np.broadcast_to(kwargs.pop("strides", 1), rank)
    dilation = np.broadcast_to(kwargs.pop("dilation_rate", 1), rank)
    kwargs.pop("data_format", None)
    kwargs.pop("depth_multiplier", None)
    return _channels_last(
        f"{cls.__name__}-{options}",
        lambda: cls(*args, activation="tanh", **keywords),
        shape,
        oracle(strides, dilation, **kwargs),
        norm_axes,
        size,
    )


def _first(case: Linear) -> Linear:
    """The same layer on channels-first inputs."""
    batch, *space, channels = case.shape
    tail = (-1,) + (1,) * len(space)

    def make():
        config = {**case.make().get_config(), "data_format": "channels_first"}
        return type(case.make()).from_config(config)

    return Linear(
        case.name + "-channels_first",
        make,
        (batch, channels, *space),
        linear.channels_first(case.bilinear),
        case.norm_axes,
        lambda u: u.reshape(tail),
        lambda u: u.reshape(tail),
        case.size,
    )


_same_stride = _conv(
    L.Conv2D, 3, 3, strides=2, padding="same",
    shape=(2, 5, 4, 2), oracle=linear.convolution, norm_axes=(0, 1, 2), size=18,
)  # fmt: skip
_grouped = _conv(
    L.Conv2D, 4, 3, padding="same", groups=2,
    shape=(2, 4, 4, 4), oracle=linear.convolution, norm_axes=(0, 1, 2), size=18,
)  # fmt: skip
_depthwise = _conv(
    L.DepthwiseConv2D, 3, padding="same", depth_multiplier=2,
    shape=(2, 4, 4, 2), oracle=linear.depthwise, norm_axes=(0, 1), size=9,
)  # fmt: skip

LINEAR = [
    _channels_last(
        "Dense",
        lambda: L.Dense(4, activation="tanh"),
        (5, 6),
        linear.einsum("...x,xy->...y"),
        (0,),
        6,
    ),
    _channels_last(
        "Dense-3d",
        lambda: L.Dense(3, activation="tanh"),
        (2, 3, 4),
        linear.einsum("...x,xy->...y"),
        (0,),
        4,
    ),
    _channels_last(
        "EinsumDense-dots",
        lambda: L.EinsumDense("...x,xy->...y", 3, bias_axes="y", activation="tanh"),
        (2, 3, 4),
        linear.einsum("...x,xy->...y"),
        (0,),
        4,
    ),
    Linear(
        "EinsumDense-heads",
        lambda: L.EinsumDense("abc,dce->aebd", (2, 3, 4), bias_axes="ed", activation="tanh"),
        (2, 3, 5),
        linear.einsum("abc,dce->aebd"),
        (1,),
        lambda u: np.transpose(u[:, 0, :])[:, None, :],
        lambda b: b,
        5,
    ),
    Linear(
        "EinsumDense-shared-letter",
        lambda: L.EinsumDense("abc,bcd->abd", (3, 4), bias_axes="bd", activation="tanh"),
        (2, 3, 5),
        linear.einsum("abc,bcd->abd"),
        (1,),
        lambda u: u[:, 0, :],
        lambda b: b,
        5,
    ),
    _conv(
        L.Conv1D, 3, 3, padding="causal", dilation_rate=2,
        shape=(2, 7, 2), oracle=linear.convolution, norm_axes=(0, 1), size=6,
    ),
    _conv(
        L.Conv1D, 3, 2, strides=3,
        shape=(2, 7, 2), oracle=linear.convolution, norm_axes=(0, 1), size=4,
    ),
    _same_stride,
    _conv(
        L.Conv2D, 3, (3, 2), dilation_rate=(2, 1), padding="same",
        shape=(2, 5, 4, 2), oracle=linear.convolution, norm_axes=(0, 1, 2), size=12,
    ),
    _grouped,
    _first(_same_stride),
    _conv(
        L.Conv3D, 2, 2, strides=2, padding="same",
        shape=(1, 3, 3, 4, 2), oracle=linear.convolution, norm_axes=(0, 1, 2, 3), size=16,
    ),
    _conv(
        L.Conv1DTranspose, 3, 3, strides=2, padding="same",
        shape=(2, 4, 2), oracle=linear.transposed, norm_axes=(0, 2), size=6,
    ),
    _conv(
        L.Conv2DTranspose, 3, 3, strides=2, padding="valid",
        shape=(2, 3, 2, 2), oracle=linear.transposed, norm_axes=(0, 1, 3), size=18,
    ),
    _conv(
        L.Conv3DTranspose, 2, 2, strides=2, padding="same",
        shape=(1, 2, 2, 2, 2), oracle=linear.transposed, norm_axes=(0, 1, 2, 4), size=16,
    ),
    _conv(
        L.DepthwiseConv1D, 3, strides=2, padding="same", depth_multiplier=2,
        shape=(2, 6, 2), oracle=linear.depthwise, norm_axes=(0,), size=3,
    ),
    _depthwise,
]  # fmt: skip


def _weight_norm(case: Linear, mean_only=None) -> Case:
    def oracle(x, g, *rest):
        *_, kernel, bias = rest  # a moving mean may come first
        gain = g.reshape([1 if a in case.norm_axes else s for a, s in enumerate(kernel.shape)])
        t = case.bilinear(x, gain * direction(kernel, case.norm_axes))
        if mean_only == "batch":
            units = np.ones(t.shape[1:]) * case.place(gain)
            others = tuple(
                a for a in range(t.ndim) if a == 0 or np.all(units == units.take([0], a - 1))
            )
            t = t - t.mean(others, keepdims=True)
        if mean_only == "layer":
            units = (1,) if "channels_first" in case.name else (-1,)
            units = {"EinsumDense-heads": (1, 3), "EinsumDense-shared-letter": (1, 2)}.get(
                case.name, units
            )
            t = t - t.mean(units, keepdims=True)
        return np.tanh(t + case.place_bias(bias))

    name = f"WeightNorm-{case.name}" + (f"-mean-only-{mean_only}" if mean_only else "")
    make = lambda: WeightNorm(case.make(), mean_only=mean_only)  # noqa: E731
    call = {"training": True} if mean_only == "batch" else {}
    return Case(name, make, case.shape, oracle, call)


def _cosine_norm(case: Linear, rescale=False, damping=0.0, centered=False, across_groups=0) -> Case:
    """`across_groups` is the number of groups, where they share a length."""

    def oracle(x, *weights):
        g, kernel, bias = weights if rescale else (None, *weights)
        ones = np.ones(kernel.shape)
        dots = case.bilinear(x, kernel)
        x_squares, w_squares = case.bilinear(x * x, ones), (kernel**2).sum(case.norm_axes)
        if centered:
            x_mean = case.bilinear(x, ones) / case.size
            w_mean = kernel.mean(case.norm_axes, keepdims=True)
            dots = dots - case.size * x_mean * case.place(w_mean)
            x_squares = x_squares - case.size * x_mean**2
            w_squares = ((kernel - w_mean) ** 2).sum(case.norm_axes)
        shape = [1 if a in case.norm_axes else s for a, s in enumerate(kernel.shape)]
        w_squares = case.place(w_squares.reshape(shape))
        if across_groups:
            channels = 1 if "channels_first" in case.name else -1
            x_squares = across_groups * x_squares.mean(channels, keepdims=True)
        bias = case.place_bias(bias)
        if rescale:
            lengths = np.sqrt(w_squares) * np.sqrt(x_squares + damping**2)
            return np.tanh(case.place(g.reshape(shape)) * dots / lengths + bias)
        return np.tanh((dots + bias) / np.sqrt((w_squares + bias**2) * (x_squares + 1)))

    options = {
        "rescale": rescale,
        "damping": damping,
        "centered": centered,
        "across_groups": bool(across_groups),
    }
    name = "-".join([f"CosineNorm-{case.name}", *(k for k, v in options.items() if v)])
    return Case(name, lambda: CosineNorm(case.make(), **options), case.shape, oracle)


def _separable(x, g, g_depthwise, depthwise, pointwise, bias):
    depthwise = g_depthwise * direction(depthwise, tuple(range(depthwise.ndim - 2)))
    pointwise = g * direction(pointwise, (-2,))
    ones = [1] * (x.ndim - 2)
    middle = linear.depthwise(ones, ones, "same")(x, depthwise)
    return np.tanh(middle @ pointwise.reshape(pointwise.shape[-2:]) + bias)


def _cosine_separable(rescale):
    def oracle(x, *weights):
        g, depthwise, pointwise, bias = weights if rescale else (None, *weights)
        *taps, inputs, multiplier = depthwise.shape
        p = pointwise.reshape(inputs, multiplier, -1)
        whole = np.einsum("kcm,cmo->kco", depthwise.reshape(-1, inputs, multiplier), p)
        whole = whole.reshape(*taps, inputs, -1)
        ones = [1] * len(taps)
        convolution = linear.convolution(ones, ones, "same")
        dots, squares = convolution(x, whole), convolution(x * x, np.ones_like(whole))
        lengths = (whole**2).sum(tuple(range(whole.ndim - 1)))
        if rescale:
            return np.tanh(g * dots / np.sqrt(lengths * squares) + bias)
        return np.tanh((dots + bias) / np.sqrt((lengths + bias**2) * (squares + 1)))

    return oracle


def _recurrent(run):
    def oracle(x, g, g_recurrent, kernel, recurrent, bias):
        return run(x, g * direction(kernel, 0), g_recurrent * direction(recurrent, 0), bias)

    return oracle


def _bidirectional(x, *weights):
    forward, backward = weights[:5], weights[5:]
    run = _recurrent(lstm)
    return np.concatenate([run(x, *forward), run(x[:, ::-1], *backward)], -1)


def _layer_norm(axes, epsilon=1e-3, shape=(-1,), mask=None):
    def oracle(x, gamma, beta):
        y = standardize(x, axes, epsilon, mask)
        return y * gamma.reshape(shape) + beta.reshape(shape)

    return oracle


def _group_norm(groups, axes, axis=-1, mask=None):
    """`axes` of what has the groups behind the channels' place, and the channels of each last."""

    def oracle(x, gamma, beta):
        x = np.moveaxis(x, axis, -1)
        split = x.reshape(*x.shape[:-1], groups, -1)
        y = standardize(split, axes, 1e-3, mask).reshape(x.shape) * gamma + beta
        return np.moveaxis(y, -1, axis)

    return oracle


def _batch_norm(axes, shape=(-1,), epsilon=1e-3, mask=None):
    def oracle(x, gamma, beta, *_):
        return standardize(x, axes, epsilon, mask) * gamma.reshape(shape) + beta.reshape(shape)

    return oracle


def _batch_norm_inference(x, gamma, beta, mean, variance):
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def _renorm(x, gamma, beta, _mean, _variance, _deviation, renorm_mean, renorm_deviation):
    mean, variance = x.real.mean(0), x.real.var(0)  # r and d are constants to the gradient
    floor = np.maximum(renorm_deviation, np.sqrt(1e-3))
    r, d = np.sqrt(variance + 1e-3) / floor, (mean - renorm_mean) / floor
    r, d = np.clip(r.real, 0.5, 1.2), np.clip(d.real, -0.3, 0.3)
    return (standardize(x, (0,), 1e-3) * r + d) * gamma + beta


_TIME_MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]], "bool")
_FULL_MASK = np.random.default_rng(1).random((3, 4, 5)) > 0.3
_by_name = {case.name: case for case in LINEAR}

CASES = [
    *(_weight_norm(case) for case in LINEAR),
    *(
        _weight_norm(_by_name[name], mean_only)
        for mean_only in ("batch", "layer")
        for name in ("Dense", "EinsumDense-heads", _same_stride.name, _first(_same_stride).name)
    ),
    Case("WeightNorm-Affine", lambda: WeightNorm(Affine()), (4, 3),
         lambda x, g, v, bias: g * np.sign(v) * x + bias),
    Case("WeightNorm-SeparableConv1D",
         lambda: WeightNorm(L.SeparableConv1D(
             3, 3, padding="same", depth_multiplier=2, activation="tanh")),
         (2, 5, 2), _separable),
    Case("WeightNorm-SeparableConv2D",
         lambda: WeightNorm(L.SeparableConv2D(3, 3, padding="same", activation="tanh")),
         (2, 4, 3, 2), _separable),
    Case("WeightNorm-Embedding", lambda: WeightNorm(L.Embedding(7, 3)), (4, 5),
         lambda x, g, table: (g * direction(table, 0))[x.astype(int)], integers=7),
    Case("WeightNorm-SimpleRNN", lambda: WeightNorm(L.SimpleRNN(3)), (2, 4, 3),
         _recurrent(simple_rnn)),
    Case("WeightNorm-LSTM", lambda: WeightNorm(L.LSTM(3)), (2, 4, 3), _recurrent(lstm)),
    Case("WeightNorm-GRU", lambda: WeightNorm(L.GRU(3)), (2, 4, 3), _recurrent(gru)),
    Case("RNN-WeightNorm-SimpleRNNCell", lambda: L.RNN(WeightNorm(L.SimpleRNNCell(3))),
         (2, 4, 3), _recurrent(simple_rnn)),
    Case("RNN-WeightNorm-LSTMCell", lambda: L.RNN(WeightNorm(L.LSTMCell(3))), (2, 4, 3),
         _recurrent(lstm)),
    Case("RNN-WeightNorm-GRUCell", lambda: L.RNN(WeightNorm(L.GRUCell(3))), (2, 4, 3),
         _recurrent(gru)),
    Case("Bidirectional-WeightNorm-LSTM", lambda: L.Bidirectional(WeightNorm(L.LSTM(3))),
         (2, 4, 3), _bidirectional),
    Case("TimeDistributed-WeightNorm-Dense",
         lambda: L.TimeDistributed(WeightNorm(L.Dense(4, activation="tanh"))), (2, 3, 4),
         lambda x, g, v, b: np.tanh(x @ (g * direction(v, 0)) + b)),
    *(_cosine_norm(case) for case in LINEAR),
    *(_cosine_norm(case, rescale=True, damping=0.7) for case in LINEAR),
    *(_cosine_norm(case, centered=True) for case in LINEAR),
    *(
        _cosine_norm(_by_name[name], rescale=True, centered=True)
        for name in ("Dense", "EinsumDense-heads", _grouped.name, _depthwise.name)
    ),
    *(
        _cosine_norm(case, across_groups=groups, **options)
        for case, groups in (
            (_by_name["Dense"], 1), (_grouped, 2), (_depthwise, 2), (_first(_same_stride), 1)
        )
        for options in ({}, {"rescale": True, "damping": 0.7})
    ),
    *(
        Case(
            f"CosineNorm-SeparableConv-{rank}-{rescale}",
            lambda make=make, rescale=rescale: CosineNorm(make(), rescale=rescale),
            shape,
            _cosine_separable(rescale),
        )
        for rank, make, shape in (
            (1, lambda: L.SeparableConv1D(
                3, 3, padding="same", depth_multiplier=2, activation="tanh"), (2, 5, 2)),
            (2, lambda: L.SeparableConv2D(3, 3, padding="same", activation="tanh"), (2, 4, 3, 2)),
        )
        for rescale in (False, True)
    ),
    Case("Affine", lambda: Affine(axis=1), (4, 3, 2),
         lambda x, k, b: x * k[:, None] + b[:, None]),
    Case("LayerNorm", lambda: LayerNorm(), (4, 5), _layer_norm((-1,))),
    Case("LayerNorm-axis1", lambda: LayerNorm(axis=1), (3, 4, 5),
         _layer_norm((1,), shape=(-1, 1))),
    Case("LayerNorm-axes", lambda: LayerNorm(axis=(2, 1), epsilon=0.1), (3, 4, 5),
         _layer_norm((1, 2), 0.1, (4, 5))),
    Case("LayerNorm-sample", lambda: LayerNorm(axis="sample"), (3, 4, 3, 2),
         _layer_norm((1, 2, 3))),
    Case("LayerNorm-sample-channels-first", lambda: LayerNorm("sample", channel_axis=1),
         (3, 2, 4, 3), _layer_norm((1, 2, 3), shape=(-1, 1, 1))),
    Case("LayerNorm-scalar", lambda: LayerNorm(scalar_affine=True), (4, 5),
         _layer_norm((-1,), shape=())),
    Case("LayerNorm-masked-time", lambda: LayerNorm(axis="sample"), (3, 4, 5),
         _layer_norm((1, 2), mask=_TIME_MASK[..., None]), {"mask": _TIME_MASK}),
    Case("LayerNorm-mask-passed-on", lambda: LayerNorm(), (3, 4, 5), _layer_norm((-1,)),
         {"mask": _TIME_MASK}),
    Case("GroupNorm", lambda: GroupNorm(2), (4, 6), _group_norm(2, (-1,))),
    Case("GroupNorm-images", lambda: GroupNorm(2), (3, 4, 3, 6), _group_norm(2, (1, 2, -1))),
    Case("GroupNorm-channels-first", lambda: GroupNorm(3, axis=1), (3, 6, 2, 2),
         _group_norm(3, (1, 2, -1), axis=1)),
    Case("GroupNorm-positions", lambda: GroupNorm(2, per_position=True), (3, 4, 6),
         _group_norm(2, (-1,))),
    Case("GroupNorm-masked-time", lambda: GroupNorm(2), (3, 4, 6),
         _group_norm(2, (1, -1), mask=_TIME_MASK[..., None, None]), {"mask": _TIME_MASK}),
    Case("RNN-LayerNormSimpleRNNCell", lambda: L.RNN(LayerNormSimpleRNNCell(3)), (2, 4, 3),
         layer_norm_simple_rnn),
    Case("RNN-LayerNormLSTMCell", lambda: L.RNN(LayerNormLSTMCell(3)), (2, 4, 3),
         layer_norm_lstm),
    Case("RNN-LayerNormGRUCell", lambda: L.RNN(LayerNormGRUCell(3)), (2, 4, 3),
         layer_norm_gru),
    Case("BatchNorm-training", lambda: BatchNorm(), (6, 4), _batch_norm((0,)),
         {"training": True}),
    Case("BatchNorm-axis1", lambda: BatchNorm(axis=1), (3, 4, 3, 2),
         _batch_norm((0, 2, 3), (-1, 1, 1)), {"training": True}),
    Case("BatchNorm-inference", lambda: BatchNorm(), (6, 4), _batch_norm_inference),
    Case("BatchNorm-mask-2d", lambda: BatchNorm(), (3, 4, 5),
         _batch_norm((0, 1), mask=_TIME_MASK[..., None]),
         {"training": True, "mask": _TIME_MASK}),
    Case("BatchNorm-mask-1d", lambda: BatchNorm(), (3, 4, 5),
         _batch_norm((0, 1), mask=np.array([1.0, 0, 1])[:, None, None]),
         {"training": True, "mask": np.array([True, False, True])}),
    Case("BatchNorm-mask-full", lambda: BatchNorm(), (3, 4, 5),
         _batch_norm((0, 1), mask=_FULL_MASK), {"training": True, "mask": _FULL_MASK}),
    Case("BatchNorm-renorm",
         lambda: BatchNorm(renorm=True, renorm_clipping={"rmin": 0.5, "rmax": 1.2, "dmax": 0.3}),
         (6, 4), _renorm, {"training": True}),
]  # fmt: skip
