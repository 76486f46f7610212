"""Masks as weights: 1 where an entry counts, 0 where it does not."""

from __future__ import annotations

from keras import ops


def as_weights(mask, inputs, channel_axis: int | None = None):
    """A mask laid out to broadcast against the inputs, in their dtype.

    Args:
        mask: Tensor of true and false. Its axes are the leading ones of `inputs` (batch, then
            time, …), or all of them; with exactly one axis fewer than `inputs` they are all but
            the channels.
        inputs: The tensor whose entries are masked.
        channel_axis: The axis that a mask with one axis fewer leaves out; the last by default.

    Raises:
        ValueError: If the mask has more axes than the inputs.
    """
    rank, mask_rank = len(inputs.shape), len(mask.shape)
    if mask_rank > rank:
        raise ValueError(
            "A mask must have at most as many axes as the inputs. Received: mask.shape="
            f"{tuple(mask.shape)}, inputs.shape={tuple(inputs.shape)}."
        )
    weights = ops.cast(mask, inputs.dtype)
    if mask_rank == rank - 1 and channel_axis is not None:
        return ops.expand_dims(weights, channel_axis)
    for _ in range(rank - mask_rank):
        weights = ops.expand_dims(weights, -1)
    return weights
