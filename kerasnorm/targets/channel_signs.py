"""Signs of the channels in front of a layer or group norm.

Such a norm takes the mean over channels from each sample, and that is lost. Its gain may have any
sign, so that a channel may pass it as y or as −y. The signs are chosen so that the channels cancel
in the mean.
"""

from __future__ import annotations

import math

import numpy as np

from kerasnorm.graph.linear_partner import Partner
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import kernels
from kerasnorm.layers.linear_ops import is_depthwise
from kerasnorm.targets import fold_into

# Channels beyond which a matrix of their products takes too much room.
_MOST = 4096


def channel_signs(found: StoredStatistics, partner: Partner | None, groups: int = 1) -> np.ndarray:
    """±1 for each channel, so that the signed channels vary little in their mean.

    With s the signs, the square of the mean is on average about sᵀGs/C²,

        G = (T/2)·(U·Uᵀ / tr U·Uᵀ + h·hᵀ / ‖h‖²) + β·βᵀ.

    T is the sum of the channels' variances; half of it is taken to come from inputs that vary each
    by itself, which reach channel c by its folded kernel U_c, summed over its positions, and half
    from all inputs in proportion, as light does it, to which the channels answer by
    h_c = a_c·(m_c − b₀_c). Single signs are turned while sᵀGs becomes less. Where each group of
    channels has a mean of its own, only what is in the same group counts in G.

    Args:
        found: What the BatchNorm computes.
        partner: The linear layer that is folded; None where each channel is a·x of its own x.
        groups: How many groups of channels have a mean of their own.
    """
    size = found.scale.size
    if size > _MOST:
        return np.ones(size)
    weights, group = _kernels(found.scale, partner)
    products = np.where(group[:, None] == group, weights @ weights.T, 0.0)
    together = found.scale * (found.mean - _offset(size, partner))
    gram = products / (np.trace(products) or 1.0)
    gram += np.outer(together, together) / (together @ together or 1.0)
    gram *= np.sum(np.square(found.scale) * found.variance) / 2
    gram += np.outer(found.beta, found.beta)
    of = np.arange(size) // (size // groups)
    gram *= of[:, None] == of
    balanced = np.concatenate([_balanced(part) for part in np.split(found.beta, groups)])
    found_signs = [_turned(gram, signs) for signs in (np.ones(size), balanced)]
    return min(found_signs, key=lambda signs: signs @ gram @ signs)


def _offset(size: int, partner: Partner | None) -> np.ndarray | float:
    """b₀ of each channel, where a linear layer has that."""
    bias = None if partner is None else partner.layer.bias
    if bias is None or math.prod(bias.shape) != size:
        return 0.0
    return fold_into.float64(bias).reshape(-1)


def _balanced(values: np.ndarray) -> np.ndarray:
    """Signs by which values nearly cancel: from the largest on, each against the sum so far."""
    signs, total = np.ones_like(values), 0.0
    for channel in np.argsort(-np.abs(values)):
        signs[channel] = -1.0 if total * values[channel] > 0 else 1.0
        total += signs[channel] * values[channel]
    return signs


def _turned(gram: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Signs from which turning none makes sᵀGs less."""
    sums, diagonal = gram @ signs, np.diag(gram)
    least = 1e-9 * np.trace(gram)
    for _ in range(4 * signs.size):
        gains = signs * sums - diagonal
        channel = int(np.argmax(gains))
        if gains[channel] <= least:
            break
        sums -= 2 * signs[channel] * gram[channel]
        signs[channel] *= -1
    return signs


def _kernels(scale: np.ndarray, partner: Partner | None) -> tuple[np.ndarray, np.ndarray]:
    """a·W of each channel, summed over positions, as (channels, inputs); and whose inputs it is."""
    each_its_own = scale[:, None], np.arange(scale.size)
    if partner is None:
        return each_its_own
    layer = partner.layer
    kernel = kernels.output_kernel(layer)
    positions = len(getattr(layer, "kernel_size", ()))
    summed = fold_into.float64(kernel.variable).sum(tuple(range(positions)))
    units = [axis - positions for axis in kernel.unit_axes]
    weights = np.moveaxis(summed, units, range(len(units))).reshape(
        math.prod(kernel.unit_shape), -1
    )
    if len(weights) != scale.size:  # an EinsumDense whose units run along more axes
        return each_its_own
    groups = kernel.unit_shape[0] if is_depthwise(layer) else getattr(layer, "groups", 1)
    return weights * scale[:, None], np.arange(scale.size) // (scale.size // groups)
