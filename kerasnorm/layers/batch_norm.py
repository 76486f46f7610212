"""`BatchNorm`: each feature normalized over the mini-batch."""

from __future__ import annotations

import keras
from keras import constraints, initializers, ops, regularizers

from kerasnorm.layers import masks
from kerasnorm.math import normalize

_CLIPPING_KEYS = {"rmax", "rmin", "dmax"}


@keras.saving.register_keras_serializable(package="kerasnorm")
class BatchNorm(keras.layers.Layer):
    """Normalizes each feature over the mini-batch, and over space and time.

    In training, h = gamma · (x − μ) / sqrt(var + epsilon) + beta, with μ and var the mean and the
    variance of one feature over every axis but `axis`; and the moving statistics take a step,
    moving = momentum · moving + (1 − momentum) · batch. At inference the moving statistics stand
    in for μ and var. `gamma` and `moving_variance` start at 1, `beta` and `moving_mean` at 0.

    The semantics are those of `keras.layers.BatchNormalization`, and weights can be exchanged
    with it: `layer.set_weights(other.get_weights())`. A weights file cannot: it names its groups
    after the classes. For a file saved from a model with Keras's layers, load it into such a model
    and set the weights of this one from that, `model.set_weights(keras_model.get_weights())`.

    `trainable = False` freezes the layer: it then
    runs in inference mode whatever `training` says.

    Masked entries do not count in the batch statistics. A mask may have the leading axes of the
    inputs (batch, or batch and time, …), all axes but the channels, or all axes.

    Statistics are computed in float32 or wider, and to full precision where |μ| ≫ deviation.

    Args:
        axis: Integer, the axis of the features. Its size must be known.
        momentum: Of the moving statistics.
        epsilon: Added to the variance.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer:
            Initializers.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        renorm: Whether to use batch renormalization: in training the normalized values are
            further scaled by r and shifted by d, which relate the batch to statistics that move
            with `renorm_momentum`.
        renorm_clipping: Dictionary that may give `"rmin"`, `"rmax"` and `"dmax"`: r is clipped to
            [rmin, rmax] and d to [−dmax, dmax].
        renorm_momentum: Of the renormalization statistics.
        synchronized: Whether the batch is that of all replicas of a `tf.distribute` strategy
            together. On JAX a sharded step sees the whole batch in any case. (Keras's `fit` runs
            under MirroredStrategy with `jit_compile=False`; under MultiWorkerMirroredStrategy it
            does not run at all, and takes a training loop of one's own.)
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Call arguments: `inputs`, `training`, and `mask`.

    Input and output shape: any, the same. The output has the layer's compute dtype; integer
    inputs are cast.

    Raises:
        ValueError: If `renorm_clipping` is malformed, or `synchronized` on PyTorch; on build, if
            `axis` is out of range or its size unknown; on call, if a mask has too many axes.

    Example:

    >>> import numpy as np
    >>> layer = BatchNorm()
    >>> tuple(layer(np.random.normal(size=(32, 3)), training=True).shape)
    (32, 3)

    References: Ioffe & Szegedy, 2015, https://arxiv.org/abs/1502.03167; for `renorm`, Ioffe,
    2017, https://arxiv.org/abs/1702.03275
    """

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        renorm=False,
        renorm_clipping=None,
        renorm_momentum=0.99,
        synchronized=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if synchronized and keras.backend.backend() == "torch":
            raise ValueError(
                "`synchronized=True` needs the TensorFlow or JAX backend. Received: backend "
                "torch. Use synchronized=False."
            )
        _check_clipping(renorm_clipping)
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = synchronized
        self.supports_masking = True
        self.autocast = False  # the statistics want the inputs before any rounding

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank or input_shape[self.axis] is None:
            raise ValueError(
                "`axis` must name an axis of the input whose size is known. Received: "
                f"axis={self.axis}, input_shape={tuple(input_shape)}. Give the size in `Input`."
            )
        self._channel_axis = self.axis % rank
        self._reduction_axes = tuple(a for a in range(rank) if a != self._channel_axis)
        size = input_shape[self.axis]
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self._channel_axis: size})
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=(size,),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=(size,),
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        mean, variance = self.moving_mean_initializer, self.moving_variance_initializer
        self.moving_mean = self._add_statistic("moving_mean", size, mean)
        self.moving_variance = self._add_statistic("moving_variance", size, variance)
        if self.renorm:
            deviation = _square_root_of(variance)
            self.moving_stddev = self._add_statistic("moving_stddev", size, deviation)
            self.renorm_mean = self._add_statistic("renorm_mean", size, mean)
            self.renorm_stddev = self._add_statistic("renorm_stddev", size, deviation)

    def _add_statistic(self, name, size, initializer):
        return self.add_weight(
            name=name,
            shape=(size,),
            initializer=initializer,
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, training=None, mask=None):
        inputs = ops.convert_to_tensor(inputs)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        gain, bias = self._broadcast(self.gamma, x), self._broadcast(self.beta, x)
        if training and self.trainable:
            y = self._normalize_over_batch(x, gain, bias, mask)
        else:
            centered = x - self._broadcast(self.moving_mean, x)
            variance = self._broadcast(self.moving_variance, x)
            y = normalize.affine(centered * ops.rsqrt(variance + self.epsilon), gain, bias)
        return ops.cast(y, self.compute_dtype)

    def _normalize_over_batch(self, x, gain, bias, mask):
        axes = self._reduction_axes
        weights = None if mask is None else masks.as_weights(mask, x, self._channel_axis)
        sum_replicas = _sum_over_replicas if self.synchronized else None
        if not self.renorm:
            y, mean, variance = normalize.normalize(
                x, axes, self.epsilon, gain, bias, weights, sum_replicas
            )
            _step(self.moving_mean, ops.reshape(mean, (-1,)), self.momentum)
            _step(self.moving_variance, ops.reshape(variance, (-1,)), self.momentum)
            return y
        centered, mean, variance = normalize.centered_moments(x, axes, weights, sum_replicas)
        normalized = centered * ops.rsqrt(variance + self.epsilon)
        mean, variance = ops.reshape(mean, (-1,)), ops.reshape(variance, (-1,))
        r, d = self._renorm_correction(mean, variance)
        self._step_renorm_statistics(mean, variance)
        normalized = normalize.affine(normalized, self._broadcast(r, x), self._broadcast(d, x))
        return normalize.affine(normalized, gain, bias)

    def _renorm_correction(self, mean, variance):
        clipping = self.renorm_clipping or {}
        # a deviation of 0, early in training, would divide by zero
        deviation = ops.maximum(ops.cast(self.renorm_stddev, mean.dtype), self.epsilon**0.5)
        r = ops.sqrt(variance + self.epsilon) / deviation
        d = (mean - ops.cast(self.renorm_mean, mean.dtype)) / deviation
        if clipping.get("rmin") is not None:
            r = ops.maximum(r, clipping["rmin"])
        if clipping.get("rmax") is not None:
            r = ops.minimum(r, clipping["rmax"])
        if clipping.get("dmax") is not None:
            d = ops.clip(d, -clipping["dmax"], clipping["dmax"])
        return ops.stop_gradient(r), ops.stop_gradient(d)

    def _step_renorm_statistics(self, mean, variance):
        deviation = ops.sqrt(variance + self.epsilon)
        _step(self.renorm_mean, mean, self.renorm_momentum)
        _step(self.renorm_stddev, deviation, self.renorm_momentum)
        _step(self.moving_mean, mean, self.momentum)
        _step(self.moving_stddev, deviation, self.momentum)
        squared = ops.square(ops.convert_to_tensor(self.moving_stddev))
        self.moving_variance.assign(ops.maximum(squared - self.epsilon, 0.0))

    def _broadcast(self, vector, x):
        if vector is None:
            return None
        shape = [1] * len(x.shape)
        shape[self._channel_axis] = -1
        return ops.cast(ops.reshape(vector, shape), x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
            "renorm": self.renorm,
            "renorm_clipping": self.renorm_clipping,
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
        }


def _step(variable, value, momentum):
    old = ops.cast(variable, value.dtype)
    variable.assign(ops.cast(normalize.moving_average(old, value, momentum), variable.dtype))


def _sum_over_replicas(tensors):
    """Each tensor added up over all replicas of `tf.distribute`; itself where there is one.

    On JAX a sharded step is one program that already sees the whole batch.
    """
    if keras.backend.backend() != "tensorflow":
        return tensors
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _square_root_of(initializer):
    def root(shape, dtype=None):
        return ops.sqrt(initializer(shape, dtype=dtype))

    return root


def _check_clipping(clipping):
    if clipping is None:
        return
    rmin, rmax, dmax = (clipping.get(key) for key in ("rmin", "rmax", "dmax"))
    wrong_order = rmin is not None and rmax is not None and rmax < rmin
    if set(clipping) - _CLIPPING_KEYS or wrong_order or (dmax is not None and dmax < 0):
        raise ValueError(
            "`renorm_clipping` may hold 'rmin', 'rmax' and 'dmax' with rmin ≤ rmax and 0 ≤ dmax. "
            f"Received: renorm_clipping={clipping}."
        )


# Keras's layer and ours, which are taken alike.
BATCH_NORMS = (keras.layers.BatchNormalization, BatchNorm)
