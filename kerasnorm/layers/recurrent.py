"""Recurrent cells whose summed inputs are layer-normalized at every step."""

from __future__ import annotations

import keras
import numpy as np
from keras import initializers, ops

from kerasnorm.math import normalize


class _LayerNormCell(keras.layers.Layer):
    """What the three cells share: their gains, and how a summed input is normalized.

    Mixed into a Keras cell, which brings the kernels, the bias, dropout and the initial state.
    """

    def __init__(self, units, *args, epsilon=1e-3, gamma_initializer="ones", **kwargs):
        super().__init__(units, *args, **kwargs)
        self.epsilon = epsilon
        self.gamma_initializer = initializers.get(gamma_initializer)

    def build(self, input_shape):
        super().build(input_shape)
        for name, width in self._gains():
            weight = self.add_weight(
                name=name,
                shape=(width * self.units,),
                initializer="zeros" if name.startswith("beta") else self.gamma_initializer,
                autocast=False,
            )
            setattr(self, name, weight)

    def get_initial_state(self, batch_size=None):
        """States of mean 0 and variance 1 over the units, the same for every sample.

        From a state of zeros, whose layer norm is 0 / sqrt(epsilon), a sequence that begins with
        blank steps would stay there. Such a state may still be given, or set by `reset_state`:
        no gradient flows through the normalization of a constant vector.
        """
        spread = np.arange(self.units) - (self.units - 1) / 2
        spread = spread / (spread.std() or 1.0)
        state = ops.convert_to_tensor(spread[None], dtype=self.compute_dtype)
        state = ops.repeat(state, batch_size, axis=0)
        several = isinstance(self.state_size, (list, tuple))
        return [state] * len(self.state_size) if several else [state]

    def _normalize(self, a, gain, shift=None):
        x = ops.cast(a, keras.backend.result_type(a.dtype, "float32"))
        x = normalize.rest_where_constant(x, (-1,))
        gain = ops.cast(gain, x.dtype)[None]
        shift = None if shift is None else ops.cast(shift, x.dtype)[None]
        return ops.cast(normalize.normalize(x, (1,), self.epsilon, gain, shift)[0], a.dtype)

    def _dropped(self, inputs, previous, training):
        """Inputs and previous output under dropout, with one mask for all gates."""
        if not training:
            return inputs, previous
        return (
            _masked(inputs, self.get_dropout_mask(inputs)),
            _masked(previous, self.get_recurrent_dropout_mask(previous)),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
        }


@keras.saving.register_keras_serializable(package="kerasnorm")
class LayerNormSimpleRNNCell(_LayerNormCell, keras.layers.SimpleRNNCell):
    """A simple recurrent cell with layer normalization of its summed input.

    With LN(a) = (a − μ) / sqrt(var + epsilon) over the units of one sample,

        a_t = W x_t + U h_{t−1}
        h_t = f( gamma · LN(a_t) + b )

    `gamma`, one per unit, starts at 1; b is the cell's bias. The initial state, unless given, has
    mean 0 and variance 1 over the units. Masked steps keep the state, as in any `RNN`.

    Args:
        units: Number of units.
        *args, epsilon, gamma_initializer, **kwargs: `epsilon` is added to the variance, and
            `gamma_initializer` starts the gains; all others are those of
            `keras.layers.SimpleRNNCell`, with the same defaults.

    Call arguments: inputs of shape `(batch, features)`, the states, and `training`.

    Example:

    >>> import numpy as np
    >>> layer = keras.layers.RNN(LayerNormSimpleRNNCell(8))
    >>> tuple(layer(np.ones((2, 5, 3), "float32")).shape)
    (2, 8)

    Reference: Ba, Kiros & Hinton, 2016, equation 4, https://arxiv.org/abs/1607.06450
    """

    def _gains(self):
        return [("gamma", 1)]

    def call(self, inputs, states, training=False):
        nested = isinstance(states, (list, tuple))
        previous = states[0] if nested else states
        x, h = self._dropped(inputs, previous, training)
        a = ops.matmul(x, self.kernel) + ops.matmul(h, self.recurrent_kernel)
        output = self.activation(_add(self._normalize(a, self.gamma), self.bias))
        return output, [output] if nested else output


@keras.saving.register_keras_serializable(package="kerasnorm")
class LayerNormLSTMCell(_LayerNormCell, keras.layers.LSTMCell):
    """An LSTM cell with layer normalization of its summed inputs and of its cell state.

    With LN over the entries of one sample's vector (the four gates of it together),

        (i, f, g, o) = gamma_recurrent · LN(U h_{t−1}) + gamma_input · LN(W x_t) + b
        c_t = σ(f) · c_{t−1} + σ(i) · tanh(g)
        h_t = σ(o) · tanh( gamma_cell · LN(c_t) + beta_cell )

    Gains start at 1, `beta_cell` at 0; b, the cell's bias, is the sum of the paper's shifts. The
    initial states, unless given, have mean 0 and variance 1 over the units; h enters through the
    same normalization as every later one, so that its scale does not matter. Masked steps keep
    the state, as in any `RNN`.

    Args:
        units: Number of units.
        *args, epsilon, gamma_initializer, **kwargs: `epsilon` is added to the variance, and
            `gamma_initializer` starts the gains; all others are those of
            `keras.layers.LSTMCell`, with the same defaults.

    Call arguments: inputs of shape `(batch, features)`, the states, and `training`.

    Example:

    >>> import numpy as np
    >>> layer = keras.layers.RNN(LayerNormLSTMCell(8))
    >>> tuple(layer(np.ones((2, 5, 3), "float32")).shape)
    (2, 8)

    Reference: Ba, Kiros & Hinton, 2016, equations 20 to 22, https://arxiv.org/abs/1607.06450
    """

    def _gains(self):
        return [("gamma_input", 4), ("gamma_recurrent", 4), ("gamma_cell", 1), ("beta_cell", 1)]

    def call(self, inputs, states, training=False):
        h, c = states
        x, h = self._dropped(inputs, h, training)
        recurrent = self._normalize(ops.matmul(h, self.recurrent_kernel), self.gamma_recurrent)
        summed = recurrent + self._normalize(ops.matmul(x, self.kernel), self.gamma_input)
        i, f, g, o = ops.split(_add(summed, self.bias), 4, axis=-1)
        gate = self.recurrent_activation
        c = gate(f) * c + gate(i) * self.activation(g)
        h = gate(o) * self.activation(self._normalize(c, self.gamma_cell, self.beta_cell))
        return h, [h, c]


@keras.saving.register_keras_serializable(package="kerasnorm")
class LayerNormGRUCell(_LayerNormCell, keras.layers.GRUCell):
    """A GRU cell with layer normalization of its summed inputs.

    With LN over the entries of one sample's vector (the two gates z, r together, the candidate on
    its own), gains gamma (left out below) before every LN,

        (z, r) = LN(U_zr h_{t−1}) + LN(W_zr x_t) + b_zr
        h̃ = tanh( LN(W_h x_t) + b_x + σ(r) · (LN(U_h h_{t−1}) + b_h) )
        h_t = σ(z) · h_{t−1} + (1 − σ(z)) · h̃

    with σ(z) the share that stays, as everywhere in Keras (the paper's 1 − z). `gamma_input` and
    `gamma_recurrent` start at 1; the shifts are the cell's biases. The initial state, unless given,
    has mean 0 and variance 1 over the units. Masked steps keep the state, as in any `RNN`.

    Args:
        units: Number of units.
        *args, epsilon, gamma_initializer, **kwargs: `epsilon` is added to the variance, and
            `gamma_initializer` starts the gains; all others are those of
            `keras.layers.GRUCell`, with the same defaults.

    Call arguments: inputs of shape `(batch, features)`, the states, and `training`.

    Raises:
        ValueError: If `reset_after` is False: the paper applies r after the normalized product.

    Example:

    >>> import numpy as np
    >>> layer = keras.layers.RNN(LayerNormGRUCell(8))
    >>> tuple(layer(np.ones((2, 5, 3), "float32")).shape)
    (2, 8)

    Reference: Ba, Kiros & Hinton, 2016, equations 27 to 29, https://arxiv.org/abs/1607.06450
    """

    def __init__(self, units, *args, **kwargs):
        super().__init__(units, *args, **kwargs)
        if not self.reset_after:
            raise ValueError(
                "LayerNormGRUCell applies the reset gate after the normalized product, as its "
                "paper does. Received: reset_after=False. Use reset_after=True."
            )

    def _gains(self):
        return [("gamma_input", 3), ("gamma_recurrent", 3)]

    def call(self, inputs, states, training=False):
        nested = isinstance(states, (list, tuple))
        previous = states[0] if nested else states
        x, h = self._dropped(inputs, previous, training)
        bias = (None, None) if self.bias is None else (self.bias[0], self.bias[1])
        x_gates, x_new = self._summed(ops.matmul(x, self.kernel), self.gamma_input, bias[0])
        h_gates, h_new = self._summed(
            ops.matmul(h, self.recurrent_kernel), self.gamma_recurrent, bias[1]
        )
        z, r = ops.split(self.recurrent_activation(x_gates + h_gates), 2, axis=-1)
        candidate = self.activation(x_new + r * h_new)
        output = z * previous + (1 - z) * candidate
        return output, [output] if nested else output

    def _summed(self, a, gain, bias):
        """The normalized gates and the normalized candidate of one product."""
        edge = 2 * self.units
        parts = (
            self._normalize(a[:, :edge], gain[:edge]),
            self._normalize(a[:, edge:], gain[edge:]),
        )
        if bias is None:
            return parts
        return _add(parts[0], bias[:edge]), _add(parts[1], bias[edge:])


def _masked(x, mask):
    if mask is None:
        return x
    return x * (mask[0] if isinstance(mask, (list, tuple)) else mask)


def _add(x, bias):
    return x if bias is None else x + ops.cast(bias, x.dtype)
