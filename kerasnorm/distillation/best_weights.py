"""Keep the best weights of a training, and go back to them where it leads away."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm.distillation.optimizer import RelativeAdam

# From so many times the least loss, the steps were too large; from there on they are a third.
_ASTRAY, _SMALLER = 1.25, 0.3


class BestWeights(keras.callbacks.Callback):
    """Ends with the weights whose loss on held-out samples is least, the first ones included.

    After an epoch that leaves the loss well above the least so far, training goes on from the best
    weights, with steps a third as large and without momentum. That is for `RelativeAdam`; another
    optimizer goes its own way, until a loss is not finite.

    Args:
        start: The loss on the held-out samples before the first step.

    Attributes:
        logs: What the best weights have on the held-out samples; None where these are the first.
        restarts: How often training went back.
    """

    def __init__(self, start: float):
        super().__init__()
        self.logs: dict[str, float] | None = None
        self.restarts = 0
        self._least = start if np.isfinite(start) else np.inf
        self._best: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []

    def on_train_begin(self, logs=None):
        self.model.optimizer.build(self.model.trainable_variables)
        self._best = _values(self.model.trainable_variables)
        self._slots = _values(self._optimizer.slots) if self._goes_back else []

    def on_epoch_end(self, epoch, logs=None):
        loss = logs["val_loss"]
        finite = np.isfinite(loss) and np.isfinite(logs["loss"])
        if loss < self._least:
            self._least = loss
            self.logs = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
            self._best = _values(self.model.trainable_variables)
        elif self._goes_back and not (finite and loss <= _ASTRAY * self._least):
            self.restarts += 1
            _assign(self.model.trainable_variables, self._best)
            _assign(self._optimizer.slots, self._slots)
            self._optimizer.factor.assign(self._optimizer.factor * _SMALLER)
        elif not finite:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        _assign(self.model.trainable_variables, self._best)

    @property
    def _optimizer(self) -> Any:
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    @property
    def _goes_back(self) -> bool:
        return isinstance(self._optimizer, RelativeAdam)


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
