"""`distill`: train a swapped model on unlabeled data to answer as its source does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm import keras_private
from kerasnorm.distillation import losses
from kerasnorm.distillation.compatibility import common_heads
from kerasnorm.distillation.features import common_features
from kerasnorm.distillation.freeze import frozen, offsets
from kerasnorm.distillation.strided_pointwise import strides_taken_before
from kerasnorm.distillation.training import (
    OF_ANSWERS,
    Batches,
    Best,
    Flat,
    compared_at,
    packing,
)
from kerasnorm.errors import DataError, KerasNormError, SwapError
from kerasnorm.fit.data import input_batches
from kerasnorm.fit.split import from_training
from kerasnorm.graph.model_graphs import ModelGraphs, graphs_of
from kerasnorm.progress import progress

# The learning rate rises over one step in twenty.
_WARM_UP = 0.05
# How many samples the features' variances are taken of.
_SAMPLE = 256
_OURS = (
    "x", "y", "validation_data", "validation_split", "validation_freq", "validation_steps",
    "validation_batch_size", "sample_weight", "class_weight", "shuffle", "initial_epoch",
)  # fmt: skip


def distill(
    student: keras.Model,
    teacher: keras.Model,
    data: Any,
    *,
    epochs: int = 3,
    batch_size: int = 64,
    seed: int = 0,
    learning_rate: float | None = None,
    optimizer: Any = None,
    jit_compile: bool | None = None,
    **fit: Any,
) -> keras.callbacks.History:
    """Train a model, in place, to answer as another does; no labels are needed.

    For each output, with s the student's and t the teacher's logits (log p for probabilities p of
    a softmax, log p − log(1 − p) for a sigmoid), the loss is

    - KL(softmax(t) ‖ softmax(s)) where the teacher ends in a softmax,
    - KL(σ(t) ‖ σ(s)) where it ends in a sigmoid: binary cross-entropy less what the teacher's own
      answer costs,
    - mean (s − t)² / var t anywhere else, which is 1 − R²,

    and the losses of several outputs are added up. Where both are functional or Sequential models,
    the student is compared with its teacher at the ends of blocks besides (additions,
    concatenations, poolings; `distillation.features`): the loss is then the mean over these of
    mean (s − t)² / var t, plus a tenth of the loss above.

    Both models run at inference throughout: dropout is off, since the teacher's answer is one
    without it, and moving statistics stay what they are. Regularizers do not count. Only what is
    trainable is trained, without the biases right in front of a layer norm: a large one would turn
    the norm into an affine map. Adam's learning rate rises over the first steps and falls to 0
    along a cosine.

    One sample in ten is held out and judges: the student ends with the weights, those it began
    with included, whose loss there is least. Half of the epochs in a row that bring nothing, and
    at least five, end the training. If anything stops it by an error, the student is as it was
    before. The teacher, and the student's compile state and trainable flags, are not touched. On
    a CPU, the same data, seed and process settings give the same weights.

    Args:
        student: The model to train, such as `swap_norms(…).model`.
        teacher: The model to agree with: same inputs, same outputs, no variable in common.
        data: Unlabeled inputs in any form that `swap_norms` takes. They are held in memory, and
            all batches of an iterable have the shape of the first.
        epochs: How often to go through the data.
        batch_size: Of the training steps; each has as many samples, the odd ones change.
        seed: Of the order of the data.
        learning_rate: The highest that Adam gets. None for 0.1 · the loss on the held-out
            samples, at least 0.0003 and at most 0.01, times sqrt(steps/400) where there are fewer:
            what is lost at first, the nearer student and the shorter training have to make good.
        optimizer: Anything `Model.compile` takes, in place of Adam and `learning_rate`.
        jit_compile: Whether XLA compiles the steps. None for what is faster: on a GPU where Keras
            can, on a CPU not.
        **fit: Passed to `Model.fit`: `callbacks`, `verbose` (0 unless given), `steps_per_epoch`, ….

    Returns:
        What `Model.fit` returns, of a model that gives the logits as a flat list. `history` has
        for each epoch `loss` and `val_loss`, and `val_agreement` for probabilities, the share of
        the held-out samples that get the teacher's own answer; with several outputs, Keras's
        names for each. Added to it are `before` and `after`: what the student that was given, and
        the one that stays, have on the held-out samples.

    Raises:
        DataError: If the data has fewer than 10 samples, does not fit the model, or is not finite.
        SwapError: If the two models do not have the same inputs and outputs, or share variables;
            if the student has nothing to train, or the teacher's answers are not finite.
        KerasNormError: If an argument of `fit` is one that is set here, or Keras runs on another
            backend than TensorFlow.

    Example:

    >>> import kerasnorm
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.add(keras.layers.BatchNormalization())
    >>> x = np.random.normal(size=(100, 4))
    >>> swap = kerasnorm.swap_norms(model, "layer", x)
    >>> history = kerasnorm.distill(swap.model, model, x)
    >>> history.after["loss"] <= history.before["loss"]
    True

    Reference: Hinton et al., 2015, https://arxiv.org/abs/1503.02531
    """
    _check_arguments(epochs, batch_size, fit)
    _check_tensorflow()
    both_graphs = graphs_of(student), graphs_of(teacher)
    heads = common_heads(*both_graphs)
    inputs = _inputs(both_graphs[0], data, batch_size)
    with contextlib.ExitStack() as undone:
        undone.enter_context(_kept(teacher))
        undone.enter_context(_kept(student))
        undone.enter_context(frozen(offsets(both_graphs[0])))
        with _scope(teacher):
            reader = Flat(teacher, both_graphs[1], heads)
            targets = tree.flatten(reader.predict(inputs, batch_size=batch_size, verbose=0))
        _check_finite(teacher, targets)
        undone.enter_context(_scope(student))
        compared = _compared(both_graphs, inputs, batch_size)
        flat_student = Flat(student, both_graphs[0], heads, compared)
        number = np.arange(len(inputs[0]))
        held_out = from_training(number)
        validation = Batches(inputs, targets, number[held_out], batch_size)
        training = Batches(inputs, targets, number[~held_out], batch_size, seed)
        steps = epochs * (fit.get("steps_per_epoch") or len(training))
        compile_with = functools.partial(
            flat_student.compile,
            loss=[losses.disagreement(h, t) for h, t in zip(heads, targets, strict=True)],
            loss_weights=[1.0 if compared is None else OF_ANSWERS] * len(heads),
            metrics=[[m] if m else [] for m in map(losses.agreement, heads)],
            jit_compile=_jit(jit_compile),
        )
        compile_with()
        before = flat_student.evaluate(validation, verbose=0, return_dict=True)
        if learning_rate is None:
            learning_rate = _learning_rate(before["loss"], steps)
        compile_with(_optimizer(student, optimizer, learning_rate, steps))
        with strides_taken_before(student):
            return _fit(flat_student, training, validation, before, steps, epochs=epochs, **fit)


def _compared(
    both_graphs: tuple[ModelGraphs, ModelGraphs], inputs: list[np.ndarray], batch_size: int
):
    """What to compare besides the answers; None if nothing."""
    student, teacher = both_graphs
    features = common_features(student, teacher)
    if not features:
        return None
    pack = packing(teacher)
    samples = (
        pack([array[first : first + batch_size] for array in inputs])[0][0]
        for first in range(0, min(_SAMPLE, len(inputs[0])), batch_size)
    )
    return compared_at(features, student.root, teacher.root, samples)


def _fit(
    flat_student,
    training: Batches,
    validation: Batches,
    before: dict[str, float],
    steps: int,
    **fit: Any,
):
    best = Best(before, fit["epochs"])
    best.set_model(flat_student)
    given = fit.pop("callbacks", None) or []
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    fit = {"verbose": 0, **fit}
    bar = contextlib.nullcontext(lambda: None) if fit["verbose"] else progress("training", steps)
    try:
        with bar as advance:
            shown = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: advance())
            fit["callbacks"] = [*given, best, shown]
            history = flat_student.fit(training, validation_data=validation, shuffle=False, **fit)
    except BaseException:
        best.restore(best.first)
        raise
    best.restore(best.best)
    history.before, history.after = before, best.found
    return history


def _learning_rate(loss: float, steps: int) -> float:
    """What fits how far the student is from its teacher; a loss that is no number asks for little.

    Of those tried, 0.001 to 0.003 was best for networks swapped to layer norm (loss 0.02), 0.01
    for the same to cosine norm (0.05 to 0.2); a network at 0.3 got lost with 0.01 in 21 steps.
    """
    least, most = 3e-4, 1e-2
    rate = float(np.clip(0.1 * loss, least, most)) if np.isfinite(loss) else least
    return rate * min(1.0, (steps / 400) ** 0.5)


def _optimizer(student: keras.Model, given: Any, learning_rate: float, steps: int) -> Any:
    optimizer = keras.optimizers.get(given) if given is not None else None
    if optimizer is None:
        warm_up = max(1, int(_WARM_UP * steps))
        optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                0.0, max(1, steps - warm_up), warmup_target=learning_rate, warmup_steps=warm_up
            )
        )
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    low = any(layer.compute_dtype == "float16" for layer in keras_private.sublayers(student))
    return keras.optimizers.LossScaleOptimizer(optimizer) if low and not scales else optimizer


def _jit(asked: bool | None) -> Any:
    """XLA's gradients of convolutions are slow on a CPU, those of depthwise ones very slow."""
    if asked is not None:
        return asked
    import tensorflow as tf

    return "auto" if tf.config.list_logical_devices("GPU") else False


@contextlib.contextmanager
def _kept(model: keras.Model) -> Iterator[None]:
    """Undo what calls do to variables that are not trained, however they are fixed to training."""
    values = [(v, keras.ops.copy(v.value)) for v in model.non_trainable_variables]
    try:
        yield
    finally:
        for variable, value in values:
            variable.assign(value)


def _scope(student: keras.Model) -> Any:
    """What a model has to be made in to be trained as the student can be."""
    strategy = getattr(student, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _inputs(model_graphs: ModelGraphs, data: Any, batch_size: int) -> list[np.ndarray]:
    batches = list(input_batches(model_graphs.root, data, batch_size))
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


def _check_finite(teacher: keras.Model, targets: list[np.ndarray]) -> None:
    if not all(np.isfinite(target).all() for target in targets):
        raise SwapError(
            "The teacher's answers must be finite. Received NaN or infinities.",
            model=teacher.name,
            hint="Check its weights, and the range of the data.",
        )


def _check_tensorflow() -> None:
    if keras.backend.backend() != "tensorflow":
        raise KerasNormError(
            "`distill` needs Keras on the TensorFlow backend. "
            f"Received: {keras.backend.backend()}.",
            hint="Set KERAS_BACKEND=tensorflow before importing keras.",
        )


def _check_arguments(epochs: int, batch_size: int, fit: dict[str, Any]) -> None:
    for name, number in (("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise KerasNormError(f"`{name}` must be at least 1. Received: {name}={number}.")
    ours = sorted(set(fit) & set(_OURS))
    if ours:
        raise KerasNormError(
            "`distill` makes the samples, the answers to them and what is held out itself. "
            f"Received: {', '.join(f'{name}=…' for name in ours)}.",
            hint="Leave it out; unlabeled inputs go into `data`.",
        )
