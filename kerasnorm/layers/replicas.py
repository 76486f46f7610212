"""Sums over the replicas of a distributed training step."""

from __future__ import annotations

import keras


def sum_over_replicas(tensors: list) -> list:
    """Each tensor added up over all replicas of `tf.distribute`; itself where there is one.

    On JAX a sharded step is one program that already sees the whole batch.
    """
    if keras.backend.backend() != "tensorflow":
        return tensors
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)
