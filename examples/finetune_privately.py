"""A trained net, fine-tuned with differential privacy: BatchNorm, and what a swap makes of it.

    pip install -e ".[privacy]"
    python examples/finetune_privately.py [--quick] [--epsilon E] [--methods NAME ...]
        [--output privately.png] [--folder FOLDER]

DP-SGD by jax-privacy's Keras support: `make_private(model, config)`, and one `fit` on JAX. The
gradient of each image is clipped to length 1, noise is added to their sum, and the images of a step
are a Poisson sample, 208 of 6,000 on average. The noise is what the library's own accountant finds
for 80 steps, epsilon 3 and delta 1e-5. A small residual net (dim_fashion.py), 88 % right on
well-lit images of clothes, has to learn dim ones. Test accuracy, mean (lowest..highest) of three
seeds, each another draw of images and of the noise, after so many steps:

                                   20                40                60                80   rate
    batch           56.6 (55.8..57.9) 57.9 (56.3..59.5) 59.3 (58.7..60.2) 59.2 (58.5..59.6)  0.001
    batch, frozen   69.6 (68.4..70.3) 70.3 (70.2..70.6) 70.8 (70.0..71.5) 71.2 (70.8..71.7)  0.003
    weight          69.0 (67.8..69.8) 70.1 (69.1..70.6) 70.2 (69.7..70.6) 71.9 (71.2..72.8)  0.003
    layer           69.7 (69.5..69.8) 70.5 (69.9..71.0) 70.6 (69.7..71.3) 72.0 (71.2..72.8)  0.003

and 53.4 (layer 53.5) before the first. The protocol: "batch" is the net as it is, "frozen" has
`trainable = False` on each BatchNorm, layer norm was fitted to 512 unlabelled images that the net
was trained on. Adam; the rate is the one of 3e-4, 1e-3 and 3e-3 with which the first seed ends best
on 2,000 validation images. What that search costs in privacy is not in epsilon, for any method.
2,000 test images. Measured on 30 November 2026 with jax-privacy 2.0.0 in 22 minutes on two cores
that others used as well.

What it shows:

- The library takes a net with BatchNorm in training without a word, and it ends 12 points below the
  others. Each image is normalized by its own statistics there, while the moving statistics, which
  inference takes, stay as they were (tests/test_finetune_privately.py).
- Freezing BatchNorm mends that, and so does a swap. Weight and layer norm end 0.7 and 0.8 points
  above the frozen BatchNorm, within what seeds make of it: none of the three is better here.
- Those three take the highest rate that was tried. At 0.01, with the first seed, they end lower, at
  68.2 (frozen), 66.8 (weight) and 66.7 (layer).
- The swapped nets have nothing left that could go wrong so: no moving statistics, and no layer that
  has to be frozen before the call.

With `poisson_sampling_in_fit`, give the configuration a seed (without one, jax-privacy 2.0.0 fails
in half of all runs), and call `fit` once (a second call begins with the same draws again).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

os.environ["KERAS_BACKEND"] = "jax"  # the only one that jax-privacy's Keras support takes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dim_fashion
import jax
import keras
import numpy as np
from jax_privacy import keras_api


@dataclass
class Protocol:
    """How much is done; `--quick` makes it a matter of seconds."""

    images: int = 6000
    # Poisson draws are padded to a multiple of 32 and compiled for each size: 208 nearly always
    # makes 192, 224 or 256 of them.
    batch_size: int = 208
    steps: int = 80
    looks: int = 4
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: int = 3


QUICK = Protocol(images=64, batch_size=16, steps=4, looks=2, rates=(1e-3,), seeds=1)


def main() -> None:
    parser = dim_fashion.parser_for((__doc__ or "").splitlines()[0])
    parser.add_argument("--epsilon", type=float, default=3.0, help="of the differential privacy")
    args = parser.parse_args()
    protocol = QUICK if args.quick else Protocol()
    task = dim_fashion.load(args.quick)
    private = config(protocol, args.epsilon).update_with_calibrated_noise_multiplier()
    shown = np.arange(protocol.looks + 1) * (protocol.steps // protocol.looks)
    budget = f"epsilon {args.epsilon:g}, delta {private.delta:g}"
    print(f"test accuracy, %, after private steps; {budget}, noise {private.noise_multiplier:.3f}")
    print_row("", [*map(str, shown), "rate"])
    curves = {}
    with dim_fashion.folder_of(args) as folder:
        for method in args.methods:
            model = dim_fashion.model_of(method, task, folder)
            rate, curves[method] = measured(model, task, protocol, private)
            cells = [dim_fashion.spread(scores) for scores in curves[method].T]
            print_row(method, [*cells, f"{rate:g}"])
    if args.output:
        title = f"DP-SGD with epsilon {args.epsilon:g} on dim images; steps"
        dim_fashion.draw(curves, shown, title, args.output)
        print(f"written: {args.output}")


def print_row(name: str, cells: Iterable[str]) -> None:
    print(f"{name:15s}" + "".join(f"{cell:>19s}" for cell in cells), flush=True)


def config(protocol: Protocol, epsilon: float) -> keras_api.DPKerasConfig:
    """Clipping, noise and Poisson sampling; the noise is what the accountant finds for epsilon."""
    return keras_api.DPKerasConfig(
        epsilon=epsilon,
        delta=1e-5,
        clipping_norm=1.0,
        batch_size=protocol.batch_size,
        gradient_accumulation_steps=1,
        train_steps=protocol.steps,
        train_size=protocol.images,
        poisson_sampling_in_fit=True,
        # Without a seed, jax-privacy 2.0 draws one that may be negative, which NumPy refuses.
        seed=0,
    )


def measured(
    model: keras.Model,
    task: dim_fashion.Task,
    protocol: Protocol,
    private: keras_api.DPKerasConfig,
) -> tuple[float, np.ndarray]:
    """The learning rate by the validation images; test accuracy by seed and look.

    The first seed decides. What a search costs in privacy is in no epsilon here.
    """
    student = Student(model, task, protocol, private)
    curves = {rate: student.learn(rate, 0) for rate in protocol.rates}
    best = max(curves, key=lambda rate: curves[rate].validation)
    others = [student.learn(best, seed) for seed in range(1, protocol.seeds)]
    return best, np.array([curve.test for curve in (curves[best], *others)])


@dataclass
class Curve:
    """Accuracy on the validation images in the end, and on the test images at each look."""

    validation: float
    test: list[float]


class Student:
    """A net that trains privately, and can be set back to how it began."""

    def __init__(
        self,
        model: keras.Model,
        task: dim_fashion.Task,
        protocol: Protocol,
        private: keras_api.DPKerasConfig,
    ):
        self.task, self.protocol = task, protocol
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        self.model = keras_api.make_private(model, private)
        self.start = model.get_weights()

    def learn(self, rate: float, seed: int) -> Curve:
        """Fine-tune on images that the seed draws, in one `fit`."""
        model, task, protocol = self.model, self.task, self.protocol
        model.set_weights(self.start)
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        model.optimizer.learning_rate = rate
        (noise,) = (weight for weight in model.non_trainable_weights if weight.name == "_rng")
        noise.assign(jax.random.PRNGKey(seed))
        chosen = np.random.default_rng(seed).permutation(task.pool)[: protocol.images]
        before = dim_fashion.accuracy(model, task, task.test)
        # In one `fit`: a second one would begin with the same Poisson draws again, which the
        # accountant takes for new ones.
        history = model.fit(
            task.x[chosen],
            task.y[chosen],
            batch_size=protocol.batch_size,
            epochs=protocol.looks,
            steps_per_epoch=protocol.steps // protocol.looks,
            validation_data=(task.x[task.test], task.y[task.test]),
            validation_batch_size=500,
            verbose=0,
        )
        after = [100 * score for score in history.history["val_accuracy"]]
        return Curve(dim_fashion.accuracy(model, task, task.validation), [before, *after])


if __name__ == "__main__":
    main()
