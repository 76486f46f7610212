"""A trained net, fine-tuned by federated averaging: BatchNorm, and what a swap makes of it.

    pip install -e ".[federated]"
    python examples/finetune_federated.py [--quick] [--methods NAME ...]
        [--output federated.png] [--folder FOLDER]

Flower's FedAvg and its ClientApp, with the clients one after the other in this process. Ten clients
have 80 dim images each, 40 of each of two classes; in a round each takes them once, 20 at a time,
with plain SGD, and all of what they end with is averaged. A small residual net (dim_fashion.py),
88 % right on well-lit images of clothes, has to learn dim ones. Test accuracy after so many rounds,
mean (lowest..highest) of three seeds, each another draw of images:

                                    0                 3                 6                12   rate
    batch           53.4 (53.4..53.4) 62.8 (62.0..64.0) 65.8 (63.9..67.1) 68.2 (67.2..69.3)   0.03
    batch, frozen   53.4 (53.4..53.4) 65.1 (64.8..65.4) 66.5 (66.2..66.8) 68.0 (68.0..68.2)  0.003
    weight          53.4 (53.4..53.4) 64.9 (64.1..65.3) 66.8 (66.5..67.0) 68.0 (67.5..68.3)  0.003
    layer           53.5 (53.5..53.5) 64.3 (64.1..64.4) 66.3 (65.9..66.7) 67.7 (67.7..67.8)  0.003

The protocol: "batch" is the net as it is, its moving statistics averaged as all other weights are;
"frozen" has `trainable = False` on each BatchNorm; layer norm was fitted to 512 unlabelled images
that the net was trained on. The rate is the one of 0.001, 0.003, 0.01, 0.03 and 0.1 with which the
first seed ends best on 2,000 validation images. 2,000 test images. Measured on 30 November 2026
with Flower 1.42.0 in 16 minutes on two cores that others used as well.

What it shows:

- After 12 rounds all four are alike: 67.7 to 68.2, within what seeds make of it. Frozen BatchNorm
  does well, as is known of it, and BatchNorm as it is does no worse in the end.
- Until then BatchNorm is behind, by 2 points after 3 rounds, and in the end its seeds are 2 points
  apart, those of the others less than 1. It takes a rate ten times as high. An average of the
  clients' variances leaves out how far their means are apart.
- Layer norm gains nothing here, though the data is of other classes at each client.
- What a swap is good for here is that no statistics are sent, and nothing has to be frozen.

Flower wants an older protobuf than else would be installed: give it an environment of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import dim_fashion
import keras
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity


@dataclass
class Protocol:
    """How much is done; `--quick` makes it a matter of seconds."""

    clients: int = 10
    images: int = 80
    batch_size: int = 20
    rounds: int = 12
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    seeds: int = 3


QUICK = Protocol(images=8, batch_size=4, rounds=2, rates=(0.01,), seeds=1)


class InProcessGrid(Grid):
    """Hands the server's messages to the clients' app, one after the other, in this process.

    Flower's own simulation starts a process for each client at a time, with a TensorFlow in each.
    """

    def __init__(self, app: ClientApp, clients: int):
        self.app = app
        self.contexts = {
            number: Context(0, number, {"partition-id": number - 1}, RecordDict(), {})
            for number in range(1, clients + 1)
        }
        # Flower's runtime sets these in each of its processes, and no message is made without.
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 0

    def set_run(self, run) -> None:
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout=None) -> Iterable[Message]:
        return [
            self.app(message, self.contexts[message.metadata.dst_node_id]) for message in messages
        ]


def main() -> None:
    parser = dim_fashion.parser_for((__doc__ or "").splitlines()[0])
    args = parser.parse_args()
    protocol = QUICK if args.quick else Protocol()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    task = dim_fashion.load(args.quick)
    curves = {}
    shown = sorted({0, protocol.rounds // 4, protocol.rounds // 2, protocol.rounds})
    print(f"test accuracy, %, after rounds of {protocol.clients} clients with two classes each")
    print_row("", [*map(str, shown), "rate"])
    with dim_fashion.folder_of(args) as folder:
        for method in args.methods:
            model = dim_fashion.model_of(method, task, folder)
            rate, curves[method] = measured(model, task, protocol)
            cells = [dim_fashion.spread(curves[method][:, number]) for number in shown]
            print_row(method, [*cells, f"{rate:g}"])
    if args.output:
        title = f"FedAvg over {protocol.clients} clients of two classes each; rounds"
        dim_fashion.draw(curves, np.arange(protocol.rounds + 1), title, args.output)
        print(f"written: {args.output}")


def print_row(name: str, cells: Iterable[str]) -> None:
    print(f"{name:15s}" + "".join(f"{cell:>19s}" for cell in cells), flush=True)


def measured(
    model: keras.Model, task: dim_fashion.Task, protocol: Protocol
) -> tuple[float, np.ndarray]:
    """The learning rate by the validation images; test accuracy by seed and round."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    start = model.get_weights()
    # The first seed decides, by images that are not tested.
    scores = {
        rate: federated(model, start, task, protocol, rate, 0, task.validation)[-1]
        for rate in protocol.rates
    }
    best = max(scores, key=lambda rate: scores[rate])
    curves = [
        federated(model, start, task, protocol, best, seed, task.test)
        for seed in range(protocol.seeds)
    ]
    return best, np.array(curves)


def parts_of(task: dim_fashion.Task, protocol: Protocol, seed: int) -> list[np.ndarray]:
    """The images of each client: two classes, half of its images of each, and no image twice."""
    shuffled = np.random.default_rng(seed).permutation(task.pool)
    by_class = [list(shuffled[task.y[shuffled] == label]) for label in range(10)]
    half = protocol.images // 2
    parts = []
    for client in range(protocol.clients):
        pair = (client % 10, (client + 1) % 10)
        parts.append(np.array([by_class[label].pop() for label in pair for _ in range(half)]))
    return parts


def federated(
    model: keras.Model,
    start: list[np.ndarray],
    task: dim_fashion.Task,
    protocol: Protocol,
    rate: float,
    seed: int,
    judged: np.ndarray,
) -> list[float]:
    """Rounds of FedAvg from where the net starts: accuracy before and after each of them."""
    parts = parts_of(task, protocol, seed)
    rng = np.random.default_rng(seed)
    model.optimizer.learning_rate = rate
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # every weight, moving statistics included, travels and is averaged
        model.set_weights(message.content["arrays"].to_numpy_ndarrays())
        images = rng.permutation(parts[context.node_config["partition-id"]])
        for first in range(0, len(images), protocol.batch_size):
            batch = images[first : first + protocol.batch_size]
            model.train_on_batch(task.x[batch], task.y[batch])
        content = {
            "arrays": ArrayRecord(model.get_weights()),
            "metrics": MetricRecord({"num-examples": len(images)}),
        }
        return Message(RecordDict(content), reply_to=message)

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        model.set_weights(arrays.to_numpy_ndarrays())
        return MetricRecord({"accuracy": dim_fashion.accuracy(model, task, judged)})

    result = FedAvg(fraction_evaluate=0.0).start(
        grid=InProcessGrid(app, protocol.clients),
        initial_arrays=ArrayRecord(start),
        num_rounds=protocol.rounds,
        evaluate_fn=evaluate,
    )
    return [score["accuracy"] for score in result.evaluate_metrics_serverapp.values()]


if __name__ == "__main__":
    main()
