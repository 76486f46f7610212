"""What a BatchNorm computes at inference, from its stored statistics: one affine map a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.errors import Refusal


@dataclass(frozen=True)
class StoredStatistics:
    """What a BatchNorm computes at inference, in float64: y = γ(x − m)/s + β.

    Attributes, one entry for each channel:
        scale: a = γ/s, where s = sqrt(v + ε).
        shift: c = β − m·γ/s.
        beta: β.
        mean: m.
        variance: v.
        deviation: s.
    """

    scale: np.ndarray
    shift: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    deviation: np.ndarray


def stored_statistics(layer: keras.Layer) -> StoredStatistics | Refusal:
    """The affine map a BatchNorm computes at inference, or why it has none."""
    values: dict[str, Any] = {
        name: None if variable is None else np.asarray(variable.numpy(), np.float64)
        for name, variable in (
            ("gamma", layer.gamma),
            ("beta", layer.beta),
            ("moving_mean", layer.moving_mean),
            ("moving_variance", layer.moving_variance),
        )
    }
    for name, value in values.items():
        if value is not None and not np.isfinite(value).all():
            return Refusal(
                f"its {name} holds {_count(~np.isfinite(value))} NaN or infinite: retrain it"
            )
    variance = values["moving_variance"] + layer.epsilon
    if (variance <= 0).any():
        return Refusal(
            f"its moving_variance + epsilon is not positive for {_count(variance <= 0)}: "
            "re-estimate its statistics"
        )
    mean, spread = values["moving_mean"], values["moving_variance"]
    gamma = np.ones_like(mean) if values["gamma"] is None else values["gamma"]
    beta = np.zeros_like(mean) if values["beta"] is None else values["beta"]
    deviation = np.sqrt(variance)
    scale = gamma / deviation
    return StoredStatistics(scale, beta - mean * scale, beta, mean, spread, deviation)


def _count(which: np.ndarray) -> str:
    return f"{int(which.sum())} of {which.size} channels"
