"""A trained model, fine-tuned with mini-batches of 2: BatchNorm against what a swap makes of it.

    python examples/finetune_small_batches.py [--quick] [--seeds N] [--output finetune.png]

fashion_resnet of the test material (13 BatchNorm calls, momentum 0.95) meets 800 labelled images
that it has never seen, once, two at a time: as it was trained, or dim (0.4·x plus noise of
deviation 0.1, another camera in poor light); shuffled, or in runs of 20 images of one class, as a
device sees them. Test accuracy in %, mean (lowest..highest) of three seeds, each another draw and
order of the images:

                       original, shuffled  original, in runs      dim, shuffled       dim, in runs
    batch               93.4 (93.1..93.7)  91.5 (90.5..92.4)  79.2 (78.3..80.0)  72.5 (70.9..74.0)
      statistics anew   93.5 (93.5..93.5)  93.4 (93.2..93.5)  80.3 (79.5..80.8)  74.9 (74.8..75.1)
    batch, frozen       93.3 (93.1..93.5)  93.2 (93.2..93.3)  79.3 (76.5..81.0)  73.8 (73.1..74.3)
    weight              93.3 (93.1..93.5)  93.2 (93.1..93.3)  79.3 (76.7..80.9)  74.1 (73.4..74.5)
    layer               93.1 (93.0..93.2)  93.0 (92.8..93.1)  79.1 (77.0..80.8)  77.2 (76.1..78.0)
    cosine              92.4 (92.3..92.5)  92.4 (92.3..92.5)  77.4 (76.4..78.0)  76.6 (76.4..76.7)

and before the first step, by the order of the rows, 93.6, 93.7, 93.6, 93.6, 93.3, 92.6 on original
and 60.6, 74.1, 60.6, 60.6, 65.5, 61.9 on dim images.

The protocol: "batch" is Keras's own `fit`; "frozen" has `trainable = False` on each BatchNorm;
layer and cosine were swapped, once, with 512 unlabelled images that the model was trained on. Adam
for all. The rate is chosen for each method and column among 3e-6, 1e-5, 3e-5, 1e-4 and 3e-4, by
the accuracy on 1,000 validation images after 300 and 400 steps with 800 other labelled ones. (A
first run with 3e-5 to 3e-3 had its best rates at the lower end, never 1e-3 or 3e-3, so the grid
was moved down for all.) 2,000 test images. Everything that is labelled, validation included, is
of the test file. "Statistics anew" is the row above with `kerasnorm.estimate_statistics` of the
800 images, unlabelled and 250 at a time: not a method for a device that cannot hold them, but it
shows what BatchNorm suffers from.

What it shows:

- Small batches alone do not set BatchNorm back: two shuffled images give it 98 to 1,568 values per
  channel, and it ends within half a point of all but cosine norm, which starts lower.
- Batches unlike the data do. In runs, BatchNorm loses 2 points on images that it knows already,
  and that is the moving statistics alone, which are those of the last runs: taken anew, all of it
  is back. A smaller rate does not help (88 % of the validation images at each up to 3e-5; shuffled,
  92 %). A longer memory does: with Keras's default momentum (`--methods batch --momentum 0.99`) the
  four columns are 93.4 (93.3..93.5), 93.3 (93.0..93.8), 78.3 (77.1..79.4) and 74.1 (73.2..75.0).
  A run is 10 steps; momentum 0.95 remembers some 20, 0.99 some 100.
- Weight norm is the frozen BatchNorm to 0.3 points: the same function, with gains that train.
- Layer and cosine norm are best on dim images in runs, where each of their seeds is above all
  others. Layer norm is 4.7 points above BatchNorm, 3.1 above the one with momentum 0.99 and 3.4
  above the frozen one. Shuffled, it is only ahead at first, with 75.9 after 25 steps (others 66.6
  to 73.0). In runs of 80 (`Protocol(run=80, momentum=0.99)`: each class once, about), the in-runs
  columns are 93.1 and 73.2 for BatchNorm, 93.5 and 71.2 frozen, 93.1 and 77.0 for layer norm.
- In runs, BatchNorm and weight norm learn little from the labels: new statistics alone, without a
  step, bring 74.1 on dim images. Shuffling brings both 79; whoever can hold the images back
  should do that first.
- On images like those it was trained on, nothing gains from 800 more.

What to do: where the swap has to be exact, `to="weight"`; where the data changes and comes in
runs, `to="layer"`. Start with Adam at 1e-5 and search around it, on batches in the order that they
will have: for dim images the best rate in runs is 3 to 10 times smaller than shuffled, and one too
high costs a swapped model more than BatchNorm (validation, original, in runs, at 1e-4: batch 87 %,
frozen and weight 85 %, cosine 81 %, layer 78 %). If BatchNorm stays, freeze it, raise its momentum,
or take its statistics anew at the end.

One model, one shift, one swap of each kind. Not shown are federated averaging, plain SGD, larger
models, BatchNorm with few values per channel, as behind Dense, and mixed targets.
Measured in 16 minutes on two shared cores; `--momentum` and `--optimizer` change what their names
say.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fashion
import keras
import numpy as np

import kerasnorm

COLORS = {
    "batch": "tab:red",
    "batch, frozen": "tab:orange",
    "weight": "tab:blue",
    "layer": "tab:green",
    "cosine": "tab:purple",
}


@dataclass
class Protocol:
    """How much is done; `--quick` makes it a matter of seconds."""

    images: int = 800
    steps: tuple[int, ...] = (0, 25, 50, 100, 200, 300, 400)
    rates: tuple[float, ...] = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
    run: int = 20
    calibration: int = 512
    tested: int = 2000
    # steps that Keras takes at once: small ones are over sooner than Python can start the next
    stride: int = 25
    seeds: int = 3
    optimizer: str = "adam"
    momentum: float | None = None
    jit_compile: bool = True


QUICK = Protocol(
    16, (0, 4, 8), (1e-4,), 4, calibration=32, tested=100, stride=4, seeds=1, jit_compile=False
)


@dataclass
class Task:
    """Labelled images that the model has never seen, in an order; parts of them as indices."""

    x: np.ndarray
    y: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    search: np.ndarray
    pool: np.ndarray
    in_runs: bool
    protocol: Protocol

    def lesson(self, seed: int | None) -> np.ndarray:
        """What to fine-tune on, in its order; without a seed, what to search the rate with."""
        rng = np.random.default_rng(1000 if seed is None else seed)
        chosen = rng.permutation(self.search if seed is None else self.pool)
        chosen = chosen[: self.protocol.images]
        if not self.in_runs:
            return chosen
        chosen = chosen[np.argsort(self.y[chosen], kind="stable")]
        length = self.protocol.run
        runs = [chosen[first : first + length] for first in range(0, len(chosen), length)]
        return np.concatenate([runs[i] for i in rng.permutation(len(runs))])


@dataclass
class Result:
    """The rate that was chosen; test accuracies by seed and step.

    `estimated` are those before and after with BatchNorm's statistics taken of all images that
    were fine-tuned on, at once.
    """

    rate: float
    curve: np.ndarray
    estimated: np.ndarray | None = None


class Student:
    """A compiled model that can be set back to how it began."""

    def __init__(self, model: keras.Model, protocol: Protocol):
        self.model = model
        self.start = model.get_weights()
        model.compile(
            protocol.optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=protocol.jit_compile,
            steps_per_execution=protocol.stride,
        )

    def begin(self, rate: float) -> None:
        """The weights as they were, and an optimizer without memory."""
        self.model.set_weights(self.start)
        for variable in self.model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        self.model.optimizer.learning_rate = rate

    def learn(
        self, task: Task, lesson: np.ndarray, steps: Sequence[int], judges: np.ndarray
    ) -> list[float]:
        """Fine-tune: accuracy on the judges after each of the steps."""
        scores, done = [], 0
        for step in steps:
            part = lesson[2 * done : 2 * step]
            if len(part):
                self.model.fit(task.x[part], task.y[part], batch_size=2, shuffle=False, verbose=0)
            done = step
            scores.append(self.accuracy(task, judges))
        return scores

    def accuracy(self, task: Task, judges: np.ndarray) -> float:
        answers = self.model.predict(task.x[judges], batch_size=100, verbose=0)
        return float(np.mean(answers.argmax(axis=1) == task.y[judges]))

    def estimated(self, task: Task, lesson: np.ndarray) -> float:
        """Test accuracy with BatchNorm's statistics taken of all of a lesson."""
        kerasnorm.estimate_statistics(self.model, task.x[lesson], batch_size=250)
        return self.accuracy(task, task.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3, help="draws of images that are averaged")
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw the curves as a PNG")
    parser.add_argument("--optimizer", default="adam", help="any that Keras knows by its name")
    parser.add_argument("--momentum", type=float, help="of BatchNorm, in place of the model's own")
    parser.add_argument("--methods", nargs="*", choices=COLORS, default=[*COLORS], metavar="NAME")
    args = parser.parse_args()
    protocol = QUICK if args.quick else Protocol(seeds=args.seeds)
    protocol.optimizer, protocol.momentum = args.optimizer, args.momentum

    tasks, calibration = load(protocol)
    results: dict[str, dict[str, Result]] = {}
    print_head(f"test accuracy, %, after {protocol.steps[-1]} steps of 2 images", tasks)
    for method in args.methods:
        student = Student(made(method, calibration, protocol), protocol)
        results[method] = {
            name: measured(student, task, protocol, estimated=method == "batch")
            for name, task in tasks.items()
        }
        print_accuracies(method, results[method], -1)
    print_head("before the first step", tasks)
    for method, row in results.items():
        print_accuracies(method, row, 0)
    print_head("learning rate", tasks)
    for method, row in results.items():
        print_row(method, [f"{result.rate:g}" for result in row.values()])
    if args.output:
        draw(results, protocol, args.output)


def load(protocol: Protocol) -> tuple[dict[str, Task], np.ndarray]:
    """The four tasks, and unlabelled images that the model was trained on, to calibrate."""
    data = fashion.load(fashion.Settings(images=protocol.calibration))
    noise = np.random.default_rng(0).normal(0, 0.1, data.test_x.shape)
    dim = np.clip(0.4 * data.test_x + noise, 0, 1).astype("float32")
    parts = np.split(np.random.default_rng(1).permutation(len(dim)), [1000, 3000, 4000])
    validation, test = (part[: protocol.tested] for part in parts[:2])
    tasks = {
        f"{name}, {'in runs' if in_runs else 'shuffled'}": Task(
            x, data.test_y, validation, test, parts[2], parts[3], in_runs, protocol
        )
        for name, x in (("original", data.test_x), ("dim", dim))
        for in_runs in (False, True)
    }
    return tasks, data.x


def made(method: str, calibration: np.ndarray, protocol: Protocol) -> keras.Model:
    """The trained model as it is, with its BatchNorm frozen, or swapped."""
    default = Path(__file__).resolve().parents[2] / "shared" / "material"
    folder = Path(os.environ.get("KERASNORM_MATERIAL", default))
    model = kerasnorm.load_model(folder / "models" / "fashion_resnet.keras")
    if not method.startswith("batch"):
        data = None if method == "weight" else calibration
        return kerasnorm.swap_norms(model, method, data).model
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = method == "batch"
            layer.momentum = protocol.momentum or layer.momentum
    return model


def measured(student: Student, task: Task, protocol: Protocol, estimated: bool) -> Result:
    """Search the learning rate on the validation images, then fine-tune with each seed."""
    scores = {}
    for rate in protocol.rates:
        student.begin(rate)
        looks = student.learn(task, task.lesson(None), protocol.steps[-2:], task.validation)
        # of the last two: the last alone depends on which class came last
        scores[rate] = sum(looks)
    best = max(scores, key=lambda rate: scores[rate])
    curves, before_and_after = [], []
    for seed in range(protocol.seeds):
        lesson = task.lesson(seed)
        student.begin(best)
        before = student.estimated(task, lesson) if estimated else 0.0
        student.begin(best)
        curves.append(student.learn(task, lesson, protocol.steps, task.test))
        after = student.estimated(task, lesson) if estimated else 0.0
        before_and_after.append((before, after))
    return Result(best, np.array(curves), np.array(before_and_after) if estimated else None)


def print_head(title: str, names: Sequence[str] | Mapping[str, Task]) -> None:
    print(f"\n{title}")
    print_row("", names)


def print_accuracies(method: str, row: Mapping[str, Result], when: int) -> None:
    """Before (0) or after (-1), and in a line of its own with statistics estimated again."""
    print_row(method, [spread(result.curve[:, when]) for result in row.values()])
    again = [r.estimated[:, when] for r in row.values() if r.estimated is not None]
    if again:
        print_row("  statistics anew", [spread(scores) for scores in again])


def spread(scores: np.ndarray) -> str:
    """Mean, lowest and highest, in per cent."""
    mean, low, high = (
        f"{100 * score:.1f}" for score in (scores.mean(), scores.min(), scores.max())
    )
    return f"{mean} ({low}..{high})"


def print_row(name: str, cells: Sequence[str] | Mapping[str, Task]) -> None:
    print(f"{name:18s}" + "".join(f"{cell:>19s}" for cell in cells), flush=True)


def draw(results: Mapping[str, Mapping[str, Result]], protocol: Protocol, path: Path) -> None:
    """Test accuracy over the steps: a panel for each task, a band from lowest to highest seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    names, steps = next(iter(results.values())), protocol.steps
    for ax, name in zip(axes.flat, names, strict=True):
        for method, row in results.items():
            curve = 100 * row[name].curve
            # weight norm and a frozen BatchNorm begin as one function: dashes show both
            line = "--" if method == "batch, frozen" else "-"
            low, high = curve.min(axis=0), curve.max(axis=0)
            drawn = {"color": COLORS[method], "linestyle": line, "zorder": 3 if line == "--" else 2}
            ax.plot(steps, curve.mean(axis=0), marker="o", markersize=3, label=method, **drawn)
            ax.fill_between(steps, low, high, color=COLORS[method], alpha=0.1, linewidth=0)
            for edge in (low, high):
                ax.plot(steps, edge, linewidth=0.6, alpha=0.6, **drawn)
        ax.set_title(name)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("steps of 2 images")
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    seeds = f"mean of {protocol.seeds} seeds; bands from the lowest to the highest"
    figure.suptitle(f"Fine-tuning with mini-batches of 2 ({seeds})", fontsize="medium")
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
