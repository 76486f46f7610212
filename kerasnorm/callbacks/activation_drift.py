"""`ActivationDrift`: watch the inputs of layers move while a model is trained."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.callbacks.layer_inputs import build, chosen, inputs_of, listed
from kerasnorm.errors import KerasNormError, check_whole_number
from kerasnorm.plotting.drift import draw_bands, save_panels

__all__ = ["ActivationDrift"]

PERCENTILES = (15, 50, 85)
# Percentiles are sorted for, which takes longer than sums: so many rows tell them to one percent.
_ROWS = 2000


class ActivationDrift(keras.callbacks.Callback):
    """Records the distribution of layers' inputs, on the same samples, while `fit` goes on.

    What a layer is fed changes with the weights before it, so that it has to follow them: internal
    covariate shift. For the records t = 0, …, T and a layer's input channels c, with
    m_c(t) and s_c(t) the mean and standard deviation over the samples (and positions, time steps),

        d(t)² = mean over c of (m_c(t) − m_c(0))² + (s_c(t) − s_c(0))²
        s̄²    = mean over c and t of s_c(t)²
        drift = mean over t = 1, …, T of d(t) / s̄

    (m − m′)² + (s − s′)² is the squared 2-Wasserstein distance of two normal distributions. A
    drift of 0.1 means that the inputs were, on average, a tenth of their own deviation away from
    where they began; of 1, that nothing is where it was. Multiplying all inputs by a number does
    not change it, so that it can be compared between layers and between models.

    Neither the model, what is in its variables (moving statistics and random states included) nor
    its training changes by being recorded: the samples are run eagerly, through shallow copies of
    the layers and with every assignment discarded, beside the compiled steps of `fit`.

    Args:
        data: Some hundred samples, labels left out: arrays in the structure that the model is
            called on, with the number of samples first.
        layers: Layers, or their names, whose inputs to record. In a nested model `outer/inner`,
            or `inner` where that is the only one. None for every layer with a kernel; a wrapper
            (WeightNorm, Bidirectional, …) or a recurrent layer stands for what is in it. Code of
            the user's own must hold them in attributes, or in lists, tuples and dicts there.
        every: Training steps between two records. The first is made as training begins, another
            as it ends. One costs about a forward pass.
        training: How the samples are run. False for what inference does; True for what training
            does, where a BatchNorm takes its statistics from the samples.
        log_dir: A folder for TensorBoard: for each layer the mean over channels of m_c, the root
            mean square of s_c, and a histogram of all finite values. Written by TensorFlow's
            `tf.summary`, whatever the backend, which needs the package tensorboard
            (`pip install 'kerasnorm[tensorboard]'`).

    Attributes:
        steps: The number of training steps before each record. It goes on from one `fit` to the
            next.
        means, stds: By the layer's name, an array of one value per channel for each record, in
            float64. Channels are the last axis, the second where `data_format` says so. A layer
            called several times counts all its calls together.
        percentiles: The same for arrays of shape (3, channels), the 15th, 50th and 85th
            percentile, of at most 2,000 evenly spaced rows.

    Raises:
        KerasNormError: If `data` or `every` is not as above; when training begins, if a layer is
            not in the model, has several inputs or none or is not called, if the callback is
            another model's, or if `log_dir` is given and tensorboard is not installed.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="first")])
    >>> model.add(keras.layers.Dense(1, name="second"))
    >>> model.compile("adam", "mse")
    >>> x, y = np.random.normal(size=(64, 4)), np.ones((64, 1))
    >>> watch = ActivationDrift(x, every=5)
    >>> history = model.fit(x, y, batch_size=8, epochs=2, callbacks=[watch], verbose=0)
    >>> watch.steps
    [0, 5, 10, 15, 16]
    >>> watch.means["second"][-1].shape
    (8,)
    >>> watch.drift()["first"]  # the samples themselves do not move
    0.0
    >>> watch.drift()["second"] > 0
    True

    Reference: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167, figure 1
    """

    def __init__(
        self,
        data: Any,
        layers: Sequence[str | keras.Layer] | None = None,
        *,
        every: int = 50,
        training: bool = False,
        log_dir: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        check_whole_number("every", every, least=1)
        self.data = tree.map_structure(np.asarray, data)
        _check_samples(tree.flatten(self.data))
        self.layers = layers
        self.every = every
        self.training = training
        self.log_dir = log_dir
        self.steps: list[int] = []
        self.means: dict[str, list[np.ndarray]] = {}
        self.stds: dict[str, list[np.ndarray]] = {}
        self.percentiles: dict[str, list[np.ndarray]] = {}
        self._watched: dict[str, keras.Layer] = {}
        self._recorded: keras.Model | None = None
        self._before_epoch = self._done = 0
        self._log: Any = None

    def on_train_begin(self, logs=None):
        model = self.model
        if self._recorded is None:
            build(model, self.data)
            self._watched = chosen(model, self.layers)
            self._recorded = model
        elif model is not self._recorded:
            raise KerasNormError(
                "An ActivationDrift records one model. Received a second.",
                model=model.name,
                hint="Make another callback for it.",
            )
        if self.log_dir is not None:
            self._log = _summary_writer(self.log_dir)
        self._record()

    def on_epoch_begin(self, epoch, logs=None):
        self._before_epoch = self._done

    def on_train_batch_end(self, batch, logs=None):
        # with `steps_per_execution`, several steps end at once, and are said to be as many where
        # the epoch has fewer left
        in_epoch = min(batch + 1, self.params.get("steps") or batch + 1)
        last, self._done = self._done, self._before_epoch + in_epoch
        if self._done // self.every > last // self.every:
            self._record()

    def on_train_end(self, logs=None):
        self._record()
        if self._log is not None:
            self._log.close()
            self._log = None

    def drift(self) -> dict[str, float]:
        """How far each layer's inputs were from where they began; the formula is above."""
        self._check_records()
        return {
            name: float(np.sqrt((_moved(means, self.stds[name]) ** 2).mean(-1)).mean())
            / (_spread(self.stds[name]) or 1.0)
            for name, means in self.means.items()
        }

    def draw(self, axes: Any, layer: str) -> None:
        """Draw, into matplotlib's axes, the percentiles of one typical channel of a layer's input.

        It is the channel that moved farther than half of the others.
        """
        self._check_records()
        moved = (_moved(self.means[layer], self.stds[layer]) ** 2).mean(0)
        typical = int(np.argsort(moved)[(len(moved) - 1) // 2])
        bands = np.stack([values[:, typical] for values in self.percentiles[layer]], axis=1)
        draw_bands(axes, self.steps, bands)

    def plot(self, path: str | os.PathLike[str], layers: Sequence[str] | None = None) -> None:
        """Write a PNG of `draw` for each layer, or for some of those recorded.

        Raises:
            KerasNormError: If nothing was recorded, matplotlib is not installed, or the file
                cannot be written.
        """
        self._check_records()
        drifts = self.drift()
        unknown = sorted(set(layers or ()) - set(drifts))
        if unknown:
            raise KerasNormError(
                f"Only recorded layers can be plotted: {listed(drifts)}. "
                f"Received: {listed(unknown)}."
            )
        panels = {
            f"input of {name}\ndrift {drifts[name]:.2f}": lambda axes, name=name: self.draw(
                axes, name
            )
            for name in (layers or drifts)
        }
        save_panels(path, panels)

    def _record(self) -> None:
        if self.steps[-1:] == [self._done]:
            return
        # `self.model` brings its variables up to date on JAX, where `fit` keeps them elsewhere
        inputs = inputs_of(self._watched, self.model, self.data, self.training)
        self.steps.append(self._done)
        for name, values in inputs.items():
            rows = values[:: math.ceil(len(values) / _ROWS)]
            # training that diverges is recorded as it is
            with np.errstate(all="ignore"):
                mean, std = (f(values, axis=0, dtype="float64") for f in (np.mean, np.std))
                bands = np.percentile(rows, PERCENTILES, axis=0)
            self.means.setdefault(name, []).append(mean)
            self.stds.setdefault(name, []).append(std)
            self.percentiles.setdefault(name, []).append(bands)
            if self._log is not None:
                with self._log.as_default(self._done):
                    _write_summaries(name, values, mean, std)
        if self._log is not None:
            self._log.flush()

    def _check_records(self) -> None:
        if len(self.steps) < 2:
            raise KerasNormError(
                f"There must be two records at least. Received {len(self.steps)}.",
                hint="Give this callback to `Model.fit(…, callbacks=[…])` first.",
            )


def _moved(means: list[np.ndarray], stds: list[np.ndarray]) -> np.ndarray:
    """The distance of each later record, and channel, from the first."""
    m, s = np.stack(means), np.stack(stds)
    return np.hypot(m[1:] - m[0], s[1:] - s[0])


def _spread(stds: Any) -> float:
    """The root mean square."""
    return float(np.sqrt(np.square(stds).mean()))


def _summary_writer(folder: str | os.PathLike[str]) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        raise KerasNormError(
            "`log_dir` needs the package tensorboard, which is not installed.",
            hint="Run: pip install 'kerasnorm[tensorboard]'",
        )
    import tensorflow as tf

    return tf.summary.create_file_writer(os.fspath(folder))


def _write_summaries(name: str, values: np.ndarray, means: np.ndarray, stds: np.ndarray) -> None:
    import tensorflow as tf

    tf.summary.scalar(f"{name}/mean", means.mean())
    tf.summary.scalar(f"{name}/std", _spread(stds))
    tf.summary.histogram(f"{name}/values", values[np.isfinite(values)])


def _check_samples(arrays: list[np.ndarray]) -> None:
    sizes = sorted({len(a) if a.ndim else 0 for a in arrays})
    if len(sizes) != 1 or sizes[0] < 2:
        raise KerasNormError(
            "`data` must be arrays of the same number of samples, two at least. Received "
            f"{' and '.join(str(a.shape) for a in arrays) or 'none'}."
        )
    if not all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
        raise KerasNormError("`data` must be finite. Received NaN or infinities.")
