#!/usr/bin/env bash
# An expert would guess: on the JAX backend, where arrays never change, target.assign(source) is a
# copy, so that copying a model's variables into a clone one by one makes the two independent.
# What happens (Keras 3.15.1, JAX 0.10.2): assign keeps the very array, and `fit` donates the arrays
# of the variables that it trains. One epoch of the clone deletes the arrays that the source still
# holds, and the source's next predict ends in "Array has been deleted". Copying through
# set_weights(get_weights()) or keras.ops.copy(source) does not do that.
# 2026-11-29
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2

KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import sys

import jax
import keras
import numpy as np

x, y = np.ones((8, 4), "float32"), np.zeros((8, 2), "float32")


def source_after_training_a_clone(copied):
    source = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    clone = keras.models.clone_model(source)
    for target, variable in zip(clone.variables, source.variables, strict=True):
        target.assign(keras.ops.copy(variable) if copied else variable)
    clone.compile("adam", "mse")
    clone.fit(x, y, verbose=0)
    try:
        source.predict(x, verbose=0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "answers"


assigned, copied = map(source_after_training_a_clone, (False, True))
print(f"Keras {keras.__version__}, JAX {jax.__version__}")
print(f"assign(variable), then the clone is trained: the source: {assigned}")
print(f"assign(keras.ops.copy(variable)), then the same: the source: {copied}")
sys.exit(0 if "deleted" in assigned and copied == "answers" else 1)
END
