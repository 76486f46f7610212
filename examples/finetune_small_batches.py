"""A trained model, fine-tuned with mini-batches of 2: BatchNorm against what a swap makes of it.

    python examples/finetune_small_batches.py [--quick] [--seeds N] [--output finetune.png]

DOCSTRING
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
    parts[:2] = [part[: protocol.tested] for part in parts[:2]]
    tasks = {
        f"{name}, {'in runs' if in_runs else 'shuffled'}": Task(
            x, data.test_y, *parts, in_runs, protocol
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
            drawn = {"color": COLORS[method], "linestyle": line}
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
