"""A plain LSTM against a layer-normalized one, reading Fashion-MNIST images row by row.

    python examples/compare_recurrent.py [--quick] [--seeds N]

Prints test accuracy with mini-batches of 128 and of 4 images, shuffled, and each from one class.
Measured with the default settings and one seed:

    mini-batches of      128, shuffled   128, by class     4, shuffled     4, by class
    LSTM                        79.3%           64.6%           81.3%           79.4%
    layer-norm LSTM             82.2%           70.5%           83.9%           83.0%

Neither sees the mini-batch, so neither minds what is in it beyond what that does to training. The
layer-normalized one learns faster: it is 3 points ahead after as many steps.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from fashion import load, print_table, settings_from_command_line
from keras import layers

from kerasnorm.layers import LayerNormLSTMCell


def reader(cell: Callable[[], keras.Layer]) -> Callable[..., keras.Model]:
    """A function that builds a network that reads 28 rows of 28 pixels with a recurrent cell."""

    def make(start):
        inputs = keras.Input((28, 28, 1))
        rows = layers.Reshape((28, 28))(inputs)
        return keras.Model(inputs, layers.Dense(10)(layers.RNN(cell())(rows)))

    return make


def main() -> None:
    settings = settings_from_command_line(__doc__ or "")
    models = {
        "LSTM": reader(lambda: layers.LSTMCell(64)),
        "layer-norm LSTM": reader(lambda: LayerNormLSTMCell(64)),
    }
    print_table(models, load(settings), settings)


if __name__ == "__main__":
    main()
