"""Train a copy of a student, and give the student the best weights that were found."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.clone.strategy import scope_like
from kerasnorm.distillation import losses
from kerasnorm.distillation.best_weights import BestWeights
from kerasnorm.distillation.compatibility import common_heads
from kerasnorm.distillation.dataset import DistillationDataset
from kerasnorm.distillation.feature_loss import FeatureLoss
from kerasnorm.distillation.features import common_features
from kerasnorm.distillation.logits_model import LogitsModel, packing
from kerasnorm.distillation.optimizer import LEARNING_RATE, jit_compile_for, optimizer_for
from kerasnorm.distillation.step_sizes import step_sizes
from kerasnorm.distillation.student_copy import StudentCopy
from kerasnorm.errors import DataError, SwapError
from kerasnorm.fit.data import input_batches
from kerasnorm.fit.sample_limit import SampleLimit
from kerasnorm.fit.split import PERIOD, chooses, is_fitted
from kerasnorm.fit.time_budget import RESERVE, TRAINING, TimeBudget
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.math import sums
from kerasnorm.progress import progress

# What the loss of the answers counts beside that of the features. Answers to a few hundred samples
# are soon known by heart, and what is right inside gives right answers.
_WEIGHT_BESIDE_FEATURES = 0.1
# What a step of training takes, in runs of the teacher: its own, and three of the student's.
_RUNS_OF_A_STEP = 5.0
# How many samples the features' variances are taken of.
_SAMPLES_OF_FEATURES = 256


def train(
    student: ModelGraphs,
    teacher: ModelGraphs,
    trained: Sequence[keras.Variable],
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    limit: SampleLimit | None = None,
    learning_rate: float | None = None,
    optimizer: Any = None,
    jit_compile: bool | None = None,
    budget: TimeBudget | None = None,
    **fit: Any,
) -> keras.callbacks.History:
    """Change some variables of a student so that it answers as its teacher; see `distill`.

    Args:
        student: The student's graphs.
        teacher: The teacher's.
        trained: The variables.
        data: See `distill`, and for all that follows.
        limit: How many samples are used; None for all of them.
        budget: The time that is left; where it is limited, `epochs` are no more than there is time
            for, and training ends when it is over.
    """
    budget = budget or TimeBudget()
    _check_trained(student, trained)
    heads = common_heads(student, teacher)
    own = student.root.batch_size
    batch_size = own or batch_size
    inputs = _inputs(student, data, batch_size, limit)
    with scope_like(teacher.root.owner):
        reader = LogitsModel(teacher.root.owner, teacher, heads)
        targets = tree.flatten(reader.predict(inputs, batch_size=batch_size, verbose=0))
    _check_finite(teacher, targets)
    if budget.is_limited:
        epochs = min(epochs, _epochs_within(budget, reader, inputs, batch_size))
        if not epochs:
            return _not_trained()
    with scope_like(student.root.owner):
        copy = StudentCopy(student, trained)
        feature_loss = _feature_loss(copy.graphs, teacher, inputs, batch_size)
        model = LogitsModel(copy.model, copy.graphs, heads, feature_loss)
        number = np.arange(len(inputs[0]))
        chosen_by, fitted_to = number[chooses(number)], number[is_fitted(number)]
        if own is not None:
            chosen_by = chosen_by[: _whole(len(chosen_by), own, student)]
        validation = DistillationDataset(inputs, targets, chosen_by, batch_size)
        training = DistillationDataset(inputs, targets, fitted_to, batch_size, seed)
        steps = epochs * (fit.get("steps_per_epoch") or len(training))
        rate = LEARNING_RATE if learning_rate is None else learning_rate
        some = [array[:batch_size] for array in inputs]
        sizes = step_sizes(copy.graphs, copy.model.trainable_variables, some)
        compiles = jit_compile_for(jit_compile)
        model.compile(
            optimizer_for(copy.model, optimizer, rate, steps, sizes),
            loss=[losses.disagreement(h, t) for h, t in zip(heads, targets, strict=True)],
            loss_weights=[_WEIGHT_BESIDE_FEATURES if feature_loss else 1.0] * len(heads),
            metrics=[[m] if m else [] for m in map(losses.agreement, heads)],
            jit_compile=compiles,
        )
        with contextlib.nullcontext() if compiles else sums.assuming(sums.UNCOMPILED):
            history = _fit(model, training, validation, steps, budget, epochs=epochs, **fit)
        if history.after is not history.before:
            copy.give_back()
    return history


def _fit(
    model: LogitsModel,
    training: DistillationDataset,
    validation: DistillationDataset,
    steps: int,
    budget: TimeBudget,
    **fit: Any,
):
    """Train a model; in the end it has the best weights that were found."""
    before = model.evaluate(validation, verbose=0, return_dict=True)
    best = BestWeights(before["loss"])
    given = fit.pop("callbacks", None) or []
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    fit = {"verbose": 0, **fit}
    bar = contextlib.nullcontext(lambda: None) if fit["verbose"] else progress("training", steps)
    with bar as advance:

        def on_train_batch_end(batch, logs):
            advance()
            model.stop_training |= budget.is_over(RESERVE)

        shown = keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)
        fit["callbacks"] = [*given, best, shown]
        history = model.fit(training, validation_data=validation, shuffle=False, **fit)
    history.before, history.after = before, best.logs or before
    return history


def _epochs_within(
    budget: TimeBudget, teacher: LogitsModel, inputs: list[np.ndarray], batch_size: int
) -> int:
    """How many epochs there is time for, by how long the teacher takes for a batch."""
    some = [array[: 4 * batch_size] for array in inputs]
    start = time.monotonic()
    teacher.predict(some, batch_size=batch_size, verbose=0)  # which ran before, and is compiled
    each = (time.monotonic() - start) / len(some[0])
    return int(budget.affords(_RUNS_OF_A_STEP * each * len(inputs[0]), TRAINING))


def _not_trained() -> keras.callbacks.History:
    history: Any = keras.callbacks.History()
    history.epoch, history.before, history.after = [], {}, {}
    return history


def _feature_loss(
    student: ModelGraphs, teacher: ModelGraphs, inputs: list[np.ndarray], batch_size: int
) -> FeatureLoss | None:
    """What to compare besides the answers; None if nothing."""
    features = common_features(student, teacher)
    if not features:
        return None
    pack = packing(teacher)
    samples = (
        pack([array[first : first + batch_size] for array in inputs])[0][0]
        for first in range(0, min(_SAMPLES_OF_FEATURES, len(inputs[0])), batch_size)
    )
    return FeatureLoss(features, student.root, teacher.root, samples)


def _inputs(
    model_graphs: ModelGraphs, data: Any, batch_size: int, limit: SampleLimit | None
) -> list[np.ndarray]:
    batches = list(input_batches(model_graphs.root, data, batch_size, limit))
    columns = list(zip(*batches, strict=True))
    for column in columns:
        shapes = sorted({array.shape[1:] for array in column})
        if len(shapes) > 1:
            raise DataError(
                "All batches must have samples of the same shape. Received "
                f"{' and '.join(map(str, shapes[:2]))}.",
                model=model_graphs.root.owner.name,
                hint="Pad or resize them.",
            )
    return [np.concatenate(column) for column in columns]


def _whole(held_out: int, size: int, student: ModelGraphs) -> int:
    """How many of the samples that are held out fill batches of a model's own size."""
    if held_out < size:
        raise DataError(
            "One sample in ten is held out, and these must fill a batch of the model, which takes "
            f"{size:,} samples at a time. Received {held_out:,} of them.",
            model=student.root.owner.name,
            hint=f"Give {PERIOD * size:,} samples or more.",
        )
    return held_out - held_out % size


def _check_trained(student: ModelGraphs, trained: Sequence[keras.Variable]) -> None:
    if not trained:
        raise SwapError(
            "The student must have something to train. Received a model without trainable weights.",
            model=student.root.owner.name,
            hint="Set `trainable = True` on the model, or on the layers that may change.",
        )


def _check_finite(teacher: ModelGraphs, targets: list[np.ndarray]) -> None:
    if not all(np.isfinite(target).all() for target in targets):
        raise SwapError(
            "The teacher's answers must be finite. Received NaN or infinities.",
            model=teacher.root.owner.name,
            hint="Check its weights, and the range of the data.",
        )
