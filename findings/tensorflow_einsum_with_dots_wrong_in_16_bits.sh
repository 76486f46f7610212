#!/usr/bin/env bash
# An expert would guess: tf.einsum("...x,xy->...y", x, k), which keras.layers.EinsumDense computes with,
# gives in float16 what it gives in float32, to three digits, and so does its gradient in bfloat16.
# What happens (TensorFlow 2.21, Keras 3.15.1, Linux x86, a CPU with AVX512-FP16 and AMX): with dots in
# the equation it is wrong by as much as the answer itself, forward in float16 and in the gradient of x
# in float16 and bfloat16, with no error or warning. The same sum without dots ("abx,xy->aby"), or as
# tf.matmul, is right, and so is everything with TF_ENABLE_ONEDNN_OPTS=0 or on a CPU without these
# instructions. oneDNN's operations are the default on such a CPU.
# 2026-11-29
set -euo pipefail

if ! grep -qw avx512_fp16 /proc/cpuinfo; then
  echo "This needs a CPU with AVX512-FP16."
  exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 tensorflow==2.21.0

errors() {
  TF_ENABLE_ONEDNN_OPTS=$1 TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> /dev/null <<'END'
import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
weights = np.arange(18.0).reshape(2, 3, 3)
for dtype in ("float16", "bfloat16"):
    x, k = (tf.cast(rng.normal(size=shape), dtype) for shape in ((2, 3, 4), (4, 3)))
    wide_x, wide_k = (tf.cast(v, "float64").numpy() for v in (x, k))
    right = wide_x @ wide_k, weights @ wide_k.T
    for equation in ("...x,xy->...y", "abx,xy->aby"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.einsum(equation, x, k)
            total = tf.reduce_sum(tf.cast(y, "float64") * weights)
        found = y, tape.gradient(total, x)
        off = [np.abs(f.numpy().astype("float64") - r).max() / np.abs(r).max() for f, r in zip(found, right)]
        print(dtype, equation, *("wrong" if error > 0.1 else "right" for error in off))
END
}

with=$(errors 1)
without=$(errors 0)
printf 'dtype, equation, forward, gradient of x\nwith oneDNN:\n%s\nwithout:\n%s\n' "$with" "$without"
[ "$with" = "float16 ...x,xy->...y wrong wrong
float16 abx,xy->aby right right
bfloat16 ...x,xy->...y right wrong
bfloat16 abx,xy->aby right right" ] && ! grep -q wrong <<< "$without"
