"""`WeightNorm`: a layer's kernel as direction and length."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

from kerasnorm import keras_private
from kerasnorm.layers import gains, kernels
from kerasnorm.layers import linear_ops as linear
from kerasnorm.layers.functional_call import functional_call
from kerasnorm.layers.patches import Contraction
from kerasnorm.layers.recurrent_mixin import RecurrentFace
from kerasnorm.math import normalize

Watcher = Callable[["WeightNorm", Any, Any], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watching_calls(watcher: Watcher) -> Iterator[None]:
    """Have the calls of WeightNorm layers reported before they happen: layer, inputs and mask.

    Only those made inside the `with`, by the same thread.
    """
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@keras.saving.register_keras_serializable(package="kerasnorm")
class WeightNorm(RecurrentFace, keras.layers.Wrapper):
    """Reparametrizes the kernel of a layer as direction times length.

    w_i = g_i · v_i / ‖v_i‖ for each output unit i, so that ‖w_i‖ = |g_i|. Every other part of the
    wrapped layer (bias, activation, padding, …) stays its own.

    - `v` is the wrapped layer's own kernel variable: `wrapper.layer.kernel`.
    - `g`, one value per output unit, starts at ‖v_i‖: the wrapped layer computes what it computed
      before, whether freshly initialized or trained. `data_init` starts it from data instead.

    The norm runs over all axes of the kernel but those of the output units: the last one for
    Dense and Conv, the one before it for the transposed convolutions, the last two for depthwise
    convolutions. Separable convolutions have two kernels and a second gain, `g_depthwise`.
    Recurrent layers and cells have one norm per gate and unit, in the kernel (`g`) and in the
    recurrent kernel (`g_recurrent`). For Embedding, a matrix that one-hot vectors are multiplied
    with, the units are the columns and the norm runs over the vocabulary.

    With `mean_only`, the mean of the pre-activation t = w·x is taken off before the wrapped
    layer's bias and activation, h = f(t − μ + b):

    - `"batch"`: the mean of each unit over the batch and all positions; at inference the moving
      mean, which starts at 0 and takes steps of 1 − `momentum` in training. Masked entries do not
      count, wherever the masked axes are the output's as well: a mask over time is left out of
      account by a convolution that is strided or pads nothing. `trainable = False` freezes it.
    - `"layer"`: the mean over the units at each position.

    Wrap a recurrent layer rather than its cell: `WeightNorm(LSTM(8))` normalizes its kernels once
    per call, and takes dropout; `RNN(WeightNorm(LSTMCell(8)))` normalizes them at every step.

    Wrapping a layer with `trainable = False` freezes v and the bias but not g. To freeze all of
    it, set `trainable = False` on the wrapper. Where each v_i is a single number (`Affine`, an
    EinsumDense that contracts nothing), only its sign counts: v stays as it is whatever
    `trainable` is set to, and g alone trains.

    A unit whose kernel is all zeros starts with g = 0, so that it still puts out zeros; its v
    gets a direction (in the wrapped layer's own variable), so that it can learn.

    g does not follow when the wrapped layer is given other weights on its own, by `assign`, by
    its own `set_weights` or from a file that is read into it alone: w then keeps its length and
    only turns. Call `reset_gain` afterwards, and w = v, as in the bare layer that the weights are
    from. A weights file that is read into this layer must hold its gains. A kernel constraint acts
    on v: it can restrict the direction of w (`NonNeg`) but not its length (`MaxNorm`). A kernel
    regularizer acts on v as well, and so not on the function.

    Args:
        layer: The layer to wrap, built or not: Dense, EinsumDense, Conv1D/2D/3D, their
            transposes, depthwise and separable convolutions, `Affine`, Embedding, SimpleRNN,
            LSTM, GRU and their cells.
        mean_only: None, `"batch"` or `"layer"`.
        momentum: Of the moving mean with `mean_only="batch"`.
        **kwargs: Base layer keyword arguments (e.g. `name`). `dtype` defaults to the wrapped
            layer's own policy.

    Input and output shapes and dtypes: those of the wrapped layer. Gains are kept in the
    variables' dtype, and norms are computed in float32 or wider. To normalize in two
    directions, write `Bidirectional(WeightNorm(LSTM(8)))`.

    Raises:
        ValueError: If the layer is of another kind, or is quantized or LoRA-enabled; if
            `mean_only` is none of the above, or given for a layer without a single
            pre-activation; on build, if the size that sets the kernel's shape is unknown; when a
            weights file without gains is read into it.

    Example:

    >>> layer = WeightNorm(keras.layers.Dense(64))
    >>> layer.build((None, 10))
    >>> tuple(layer.g.shape), tuple(layer.layer.kernel.shape)
    ((64,), (10, 64))

    Reference: Salimans & Kingma, 2016, https://arxiv.org/abs/1602.07868
    """

    def __init__(self, layer, mean_only=None, momentum=0.99, **kwargs):
        if isinstance(layer, keras.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        if not kernels.has_kernels(layer):
            raise ValueError(
                "WeightNorm needs a layer with a kernel to normalize, one of "
                f"{', '.join(kernels.supported_classes())}. Received: {layer} of type "
                f"{type(layer).__name__}."
            )
        kernels.require_plain_kernel("WeightNorm", layer)
        kernels.keep_in_float("WeightNorm", layer)
        if kernels.is_cell(layer) and (layer.dropout or layer.recurrent_dropout):
            # RNN draws a cell's masks once per sequence, and only for cells it knows
            raise ValueError(
                "WeightNorm cannot wrap a recurrent cell with dropout. Received: cell "
                f"'{layer.name}', dropout={layer.dropout}, recurrent_dropout="
                f"{layer.recurrent_dropout}. Wrap the layer, as in WeightNorm(LSTM(8, dropout=0.1))"
                "."
            )
        if mean_only not in (None, "batch", "layer"):
            raise ValueError(
                f"`mean_only` must be None, 'batch' or 'layer'. Received: mean_only={mean_only!r}."
            )
        if mean_only and kernels.kernel_class(layer) is None:
            raise ValueError(
                "`mean_only` needs a linear layer, with one pre-activation to take the mean of. "
                f"Received: mean_only={mean_only!r}, layer '{layer.name}' of type "
                f"{type(layer).__name__}. Use mean_only=None."
            )
        if mean_only and kernels.overridden(layer):
            raise ValueError(
                "`mean_only` computes the pre-activation of a layer itself, and would not use the "
                f"`{kernels.overridden(layer)}` of {type(layer).__name__}. Received: mean_only="
                f"{mean_only!r}, layer '{layer.name}'. Use mean_only=None."
            )
        self.mean_only = mean_only
        self.momentum = momentum
        # In place of the norms of v. For who gives a new layer all its weights once it is built:
        # norms of large kernels take long.
        self.gain_initializer: keras.Initializer | None = None
        self._has_signs = False
        self.supports_masking = layer.supports_masking
        if mean_only:
            # the wrapped layer is then not called, so that its penalty on outputs is taken here
            self.activity_regularizer = layer.activity_regularizer

    def build(self, input_shape, *args):
        kernels.require_known_channels("WeightNorm", self.layer, input_shape)
        with gains.out_of_graphs():  # g starts from the values of v
            self._build(input_shape, *args)

    def _build(self, input_shape, *args):
        if not self.layer.built:
            self.layer.build(input_shape, *args)
        for name, kernel in kernels.kernels_of(self.layer).items():
            gain = self.add_weight(
                name=name,
                shape=kernel.unit_shape,
                initializer=self.gain_initializer or gains.initial_gain(kernel),
                dtype=kernel.dtype,
                autocast=False,
            )
            setattr(self, name, gain)
        # then each v_i is a single number
        self._has_signs = not kernels.output_kernel(self.layer).contracted_axes
        self._freeze_signs()
        if self.mean_only == "batch":
            self.moving_mean = self.add_weight(
                name="moving_mean",
                shape=kernels.output_kernel(self.layer).unit_shape,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

    def _freeze_signs(self):
        if self._has_signs and kernels.has_plain_kernel(self.layer):
            kernels.output_kernel(self.layer).variable.trainable = False

    @keras.layers.Wrapper.trainable.setter
    def trainable(self, value):
        keras.layers.Wrapper.trainable.fset(self, value)
        self._freeze_signs()

    # Every model that holds this layer filters these two by the flags of the variables, and
    # nobody tells a wrapper of `trainable` being set on the layer in it.
    @property
    def variables(self):
        self._freeze_signs()
        return super().variables

    @property
    def weights(self):
        self._freeze_signs()
        return super().weights

    def call(self, inputs, *args, training=None, mask=None, **kwargs):
        watcher = _watcher.get()
        if watcher is not None:
            watcher(self, inputs, mask)
        kernels.require_plain_kernel("WeightNorm", self.layer)  # it may have lost it since
        if self.mean_only:
            return self._call_mean_only(inputs, training, mask)
        accepted = inspect.signature(self.layer.call).parameters
        for name, value in (("training", training), ("mask", mask)):
            if value is not None and name in accepted:
                kwargs[name] = value
        return functional_call(self.layer, self._weights_by_variable(), inputs, *args, **kwargs)

    def _call_mean_only(self, inputs, training, mask):
        t = self.pre_activation(inputs)
        contraction = Contraction(self.layer, len(inputs.shape))
        units = contraction.unit_axes_of_output()
        if self.mean_only == "layer":
            mean = normalize.weighted_mean(t, units)
        elif training and self.trainable:
            others = tuple(a for a in range(len(t.shape)) if a not in units)
            mean = normalize.weighted_mean(t, others, contraction.weights_of_output(mask, t))
            self._step_moving_mean(mean, contraction)
        else:
            mean = contraction.units_to_output(ops.cast(self.moving_mean, t.dtype))
        bias = self.layer.bias
        bias = None if bias is None else keras_private.stored_value(bias)
        y = ops.cast(linear.add_bias(self.layer, t - mean, bias), self.compute_dtype)
        activation = getattr(self.layer, "activation", None)
        return y if activation is None else activation(y)

    def _step_moving_mean(self, mean, contraction):
        old = contraction.units_to_output(ops.convert_to_tensor(self.moving_mean))
        new = normalize.moving_average(old, ops.cast(mean, old.dtype), self.momentum)
        self.moving_mean.assign(contraction.output_to_units(new))

    def pre_activation(self, inputs, unit_gain=False):
        """t = w · x of a linear layer: before any mean, bias and activation.

        Args:
            inputs: What the layer is called on.
            unit_gain: Whether to put 1 in place of `g`.

        Returns:
            A tensor of the output's shape, in float32 or wider.
        """
        weights = self.normalized_kernels()
        if unit_gain:
            kernel = kernels.output_kernel(self.layer)
            weights["g"] = gains.weight(kernel, ops.ones_like(ops.convert_to_tensor(self.g)))
        weights = {name: ops.cast(w, self.compute_dtype) for name, w in weights.items()}
        x = ops.cast(inputs, self.compute_dtype)
        t = linear.linear_map(self.layer, weights, x)
        return ops.cast(t, keras.backend.result_type(t.dtype, "float32"))

    def normalized_kernels(self):
        """The weights that the layer computes with, by the name of their gain.

        Returns:
            A dict of tensors in the variables' dtype: `{"g": w}`, with `"g_depthwise"` for
            separable convolutions and `"g_recurrent"` for recurrent layers.
        """
        return {
            name: gains.weight(kernel, getattr(self, name))
            for name, kernel in kernels.kernels_of(self.layer).items()
        }

    def reset_gain(self):
        """Set every gain to the length of its v, so that w = v.

        For use after giving `wrapper.layer` a bare layer's weights, in whatever way.
        """
        for name, kernel in kernels.kernels_of(self.layer).items():
            gain = getattr(self, name)
            gain.assign(gains.initial_gain(kernel)(gain.shape, gain.dtype))

    def load_own_variables(self, store):
        if not store.keys() and self.variables:
            raise ValueError(
                f"The weights of WeightNorm '{self.name}' must include its gain. Received: a file "
                "without one, from a layer that was not wrapped when it was saved. Load it into "
                "the bare layer, then wrap that."
            )
        super().load_own_variables(store)

    def _weights_by_variable(self):
        weights = self.normalized_kernels()
        return {
            id(kernel.variable): weights[name]
            for name, kernel in kernels.kernels_of(self.layer).items()
        }

    def compute_output_shape(self, input_shape, *args):
        return self.layer.compute_output_shape(input_shape, *args)

    def compute_mask(self, inputs, mask=None):
        return self.layer.compute_mask(inputs, mask)

    def get_config(self):
        return {
            **super().get_config(),
            "mean_only": self.mean_only,
            "momentum": self.momentum,
        }
