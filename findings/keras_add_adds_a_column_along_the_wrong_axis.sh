#!/usr/bin/env bash
# An expert would guess: `keras.ops.add(x, y)` broadcasts as NumPy does on every backend, and so does
#   `x + y` in a functional model.
# What happens: on TensorFlow, where all axes of y but one have length 1 and that one is as long as x's
#   last or second axis, Keras calls `tf.nn.bias_add`, whichever axis of y it is. A column of shape
#   (3, 1) is added to (2, 3, 3) as if it were a row; adding (3, 1) to (2, 3, 4) is right, so that it
#   shows on square inputs only (attention scores, square images). `y + x` is right, x - (-y) too. A
#   layer whose `call` says `x + y` is right when it is called, and wrong once `+` was recorded in a
#   functional model.
# What helps: `ops.broadcast_to` of the column to more than one axis before it is added.
# 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "keras==3.15.1" "tensorflow-cpu==2.21.0" || \
  "$folder/venv/bin/pip" install -q "keras==3.15.1" "tensorflow==2.21.0"
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'END'
import keras
import numpy as np
from keras import ops

print("Keras", keras.__version__, "on", keras.backend.backend())
x, column = np.zeros((2, 3, 3), "float32"), np.array([[1.0], [2.0], [3.0]], "float32")
expected = x + column
as_a_row = x + column[:, 0]
inputs = keras.Input((3, 3))
functional = keras.Model(inputs, inputs + column)


class Plus(keras.Layer):
    def call(self, x):
        return x + column


results = {
    "ops.add(x, column)": ops.add(x, column),
    "functional model of x + column": functional(x),
    "ops.add(column, x)": ops.add(column, x),
    "ops.subtract(x, -column)": ops.subtract(x, -column),
    "layer with x + column in its call": Plus()(x),
    "ops.add(x, whole column)": ops.add(x, ops.broadcast_to(column, (3, 3))),
}
wrong = []
for text, value in results.items():
    value = np.asarray(value)
    print(f"{text}: {value[0].tolist()}")
    if not np.array_equal(value, expected):
        assert np.array_equal(value, as_a_row), text
        wrong.append(text)
print("wrong:", wrong)
assert wrong == list(results)[:2], wrong
assert np.array_equal(ops.add(x[:, :, :2], column), expected[:, :, :2])
END
