"""`distill`: train a swapped model on unlabeled data to answer as its source does."""

from __future__ import annotations

import numbers
from typing import Any

import keras

from kerasnorm.distillation.trained_variables import trained_variables
from kerasnorm.distillation.training import train
from kerasnorm.errors import KerasNormError, check_whole_number
from kerasnorm.fit.sample_limit import SampleLimit
from kerasnorm.graph.model_graphs import graphs_of

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
    max_samples: int | None = None,
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
    the norm into an affine map. Adam's steps are a share of each variable's size, so that they mean
    the same for kernels that take pixels from 0 to 255 as for those that take them from 0 to 1;
    the learning rate rises over the first tenth of the steps and falls to 0 along a cosine.

    One sample in ten is left out for `Swap.update_report`. Another one in ten is held out and
    decides: the student ends with the weights, those it began
    with included, whose loss there is least. After an epoch that leaves this loss a quarter above
    the least so far, training goes back to the best weights, and on with steps a third as large.
    What is trained is a copy of the student (to callbacks
    `self.model.inner`), and the student gets the best weights in the end: until then, and for good
    if anything stops the training by an error, it is as it was before, in other threads too. The
    teacher, and the student's compile state and trainable flags, are not touched. On a CPU, the
    same data, seed and process settings give the same weights.

    Args:
        student: The model to train, such as `swap_norms(…).model`.
        teacher: The model to agree with: same inputs, same outputs, no variable in common.
        data: Unlabeled inputs in any form that `swap_norms` takes. They are held in memory, and
            all batches of an iterable have the shape of the first.
        epochs: How often to go through the data.
        batch_size: Of the training steps; each has as many samples, the odd ones change. That of
            the model, where it takes batches of one size.
        seed: Of the order of the data, and of the subset that `max_samples` leaves of it.
        max_samples: How many samples are used at most, as in `swap_norms`; None for all of them.
        learning_rate: The highest that Adam gets, as a share of the root mean square of each
            variable; for a bias, of its layer's output where that is larger. None for 0.01.
        optimizer: Anything `Model.compile` takes, in place of Adam and `learning_rate`. Its steps
            are its own, and training does not go back.
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
            if the student has nothing to train, or a layer that cannot be copied; if the teacher's
            answers are not finite.
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
    check_whole_number("epochs", epochs, least=1)
    check_whole_number("batch_size", batch_size, least=1)
    limit = SampleLimit(max_samples, seed)
    _check_arguments(learning_rate, fit)
    _check_tensorflow()
    student_graphs = graphs_of(student)
    return train(
        student_graphs,
        graphs_of(teacher),
        trained_variables(student_graphs),
        data,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        learning_rate=learning_rate,
        optimizer=optimizer,
        jit_compile=jit_compile,
        **fit,
    )


def _check_tensorflow() -> None:
    if keras.backend.backend() != "tensorflow":
        raise KerasNormError(
            "`distill` needs Keras on the TensorFlow backend. "
            f"Received: {keras.backend.backend()}.",
            hint="Set KERAS_BACKEND=tensorflow before importing keras.",
        )


def _check_arguments(learning_rate: Any, fit: dict[str, Any]) -> None:
    rates = isinstance(learning_rate, numbers.Real) and 0 < float(learning_rate) < float("inf")
    if learning_rate is not None and not rates:
        raise KerasNormError(
            "`learning_rate` must be a number above 0, and finite. Received: "
            f"learning_rate={learning_rate!r}."
        )
    ours = sorted(set(fit) & set(_OURS))
    if ours:
        raise KerasNormError(
            "`distill` makes the samples, the answers to them and what is held out itself. "
            f"Received: {', '.join(f'{name}=…' for name in ours)}.",
            hint="Leave it out; unlabeled inputs go into `data`.",
        )
