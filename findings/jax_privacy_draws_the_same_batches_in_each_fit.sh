#!/usr/bin/env bash
# An expert would guess: with Poisson sampling inside `fit` and a seed, a model that is fitted once an
# epoch, as one does to draw a curve, goes on drawing: the second call sees other batches, as the
# accountant supposes that each step does.
# What happens (jax-privacy 2.0.0, Keras 3.15.1, JAX 0.10.2): every `fit` begins with the same draws
# again, so that two calls of two steps see the same two batches twice, while the steps are counted
# as new ones. A single call with all epochs, or another seed for each call, does not repeat them.
# 2026-11-30
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax-privacy==2.0.0 keras==3.15.1 jax==0.10.2

KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import sys

import keras
import numpy as np
from jax_privacy import keras_api

drawn = []
pad = keras_api._pad_batch_indices


def recording(indices, size):
    drawn.append(sorted(int(i) for i in indices))
    return pad(indices, size)


keras_api._pad_batch_indices = recording
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
config = keras_api.DPKerasConfig(
    epsilon=9.0,
    delta=1e-3,
    clipping_norm=1.0,
    batch_size=4,
    gradient_accumulation_steps=1,
    train_steps=8,
    train_size=64,
    noise_multiplier=2.0,
    poisson_sampling_in_fit=True,
    seed=0,
)
model = keras_api.make_private(model, config)
x, y = np.zeros((64, 2), "float32"), np.arange(64.0)[:, None]
calls = []
for _ in range(2):
    drawn.clear()
    model.fit(x, y, batch_size=4, steps_per_epoch=2, verbose=0)
    calls.append(list(drawn[:2]))
for number, batches in enumerate(calls, 1):
    print(f"fit {number} draws {batches}")
sys.exit(0 if calls[0] == calls[1] and calls[0][0] != calls[0][1] else 1)
END
