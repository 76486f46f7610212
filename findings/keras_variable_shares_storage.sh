#!/usr/bin/env bash
# An expert would guess: keras.Variable(other.value) makes a new variable that starts with the
# other's value, as it does on the JAX backend, or when given an array or a tensor.
# What happens (Keras 3.15.1, TensorFlow 2.21.0): on the TensorFlow backend `value` is the
# tf.Variable itself, and the new keras.Variable keeps that object. Assigning to either of the two
# changes both, while no two Keras variables are the same object, so that a test for identity does
# not see it. keras.ops.copy(other.value) or an initializer gives storage of its own.
# 2026-11-28
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 tensorflow==2.21.0

KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'END'
import sys

import keras
import numpy as np
import tensorflow as tf

first = keras.Variable(np.zeros(3, "float32"))
second = keras.Variable(first.value)
third = keras.Variable(keras.ops.copy(first.value))
second.assign(np.ones(3, "float32"))
shared = float(first.numpy().sum()) == 3.0
print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}")
print(f"keras.Variable(first.value) is first: {second is first}")
print(f"second.value is first.value: {second.value is first.value}")
print(f"after second.assign(ones), first holds {first.numpy()}, the copy {third.numpy()}")
sys.exit(0 if shared and third.numpy().sum() == 0 else 1)
END
