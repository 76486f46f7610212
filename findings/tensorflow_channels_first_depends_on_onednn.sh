#!/usr/bin/env bash
# An expert would guess: TensorFlow has no convolution with channels first on a CPU, or this version
# has it; either way, a model that runs on one x86 machine runs on every other with the same wheel.
# What happens (TensorFlow 2.21, Keras 3.15.1): it is there with oneDNN's operations and not without
# them, eagerly and compiled, and unless TF_ENABLE_ONEDNN_OPTS says which, TensorFlow chooses by the
# CPU it starts on: on one without AVX-512 it left them off, and the same model with the same wheel
# failed ("only supports the NHWC tensor format") that had run on another. Whoever tests models with
# channels first on CPUs sets the variable.
# 2026-11-29
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 tensorflow==2.21.0

answer() {
  TF_ENABLE_ONEDNN_OPTS=$1 TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> /dev/null <<'END'
import keras
import numpy as np

inputs = keras.Input((3, 8, 8))
model = keras.Model(inputs, keras.layers.Conv2D(4, 3, data_format="channels_first")(inputs))
for call in (model, lambda x: model.predict(x, verbose=0)):
    try:
        print("runs" if call(np.ones((2, 3, 8, 8), "float32")).shape == (2, 4, 6, 6) else "?")
    except Exception as error:
        print("NHWC only" if "NHWC" in str(error) else "?")
END
}

without=$(answer 0 | paste -sd, -)
with=$(answer 1 | paste -sd, -)
echo "TF_ENABLE_ONEDNN_OPTS=0, called and by predict: $without"
echo "TF_ENABLE_ONEDNN_OPTS=1, called and by predict: $with"
[ "$without" = "NHWC only,NHWC only" ] && [ "$with" = "runs,runs" ]
