"""One training step of one model, on one device or on several: python distributed_step.py HOW OUT.

HOW is one of: single, mirrored, worker (TF_CONFIG set), data_parallel (the JAX backend).
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers

from kerasnorm import BatchNorm, CosineNorm, LayerNorm, WeightNorm

BATCH = 8


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = WeightNorm(layers.Conv2D(4, 3, activation="relu"))(inputs)
    x = BatchNorm(synchronized=True, momentum=0.5)(x)
    x = CosineNorm(layers.Conv2D(4, 3, activation="relu"), rescale=True)(x)
    # a shift straight before a BatchNorm would have no gradient but rounding
    x = layers.ReLU()(LayerNorm(axis="sample")(x))
    x = BatchNorm(synchronized=True, momentum=0.5, axis=-1)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 6, 6, 3)).astype("float32")
    x[BATCH // 2 :] = 3 * x[BATCH // 2 :] + 1  # the two replicas see unlike halves
    return x, rng.normal(size=(BATCH, 2)).astype("float32")


def fit(model):
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    x, y = data()
    model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    return model


def mirrored():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = make_model()
    return fit(model)


def worker():
    """Keras's fit does not support several workers: a loop of our own."""
    import json
    import os

    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    with strategy.scope():
        model = make_model()
    half = BATCH // 2
    x, y = (t[rank * half : (rank + 1) * half] for t in data())

    @tf.function
    def step():
        def replica_step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            values = [v.value for v in model.trainable_variables]
            gradients = tape.gradient(loss, values)
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

        return strategy.run(replica_step)

    for _ in range(2):
        gradients = step()
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign(variable - 0.1 * gradient)
    return model


def data_parallel():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    assert len(keras.distribution.list_devices()) == 2
    return fit(make_model())


if __name__ == "__main__":
    how, out = sys.argv[1:]
    makers = {"mirrored": mirrored, "worker": worker, "data_parallel": data_parallel}
    trained = makers[how]() if how in makers else fit(make_model())
    arrays = [keras.ops.convert_to_numpy(w) for w in trained.weights]
    np.savez(out, **{f"{i:02d}": a for i, a in enumerate(arrays)})
