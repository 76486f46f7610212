"""Several replicas leave the weights that one device leaves on the whole batch."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close

pytestmark = pytest.mark.slow
_SCRIPT = Path(__file__).with_name("distributed_step.py")


def start(how, out, **environment):
    return subprocess.Popen(
        [sys.executable, str(_SCRIPT), how, str(out)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def weights(path):
    with np.load(path) as stored:
        return [stored[key] for key in sorted(stored.files)]


def assert_same(path, reference):
    for one, other in zip(weights(path), weights(reference), strict=True):
        # sums over replicas round in another order, at each of several steps
        assert_close(one, other, factor=3)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "weights.npz"
    finish(start("single", path))
    return path


def test_mirrored_strategy(single, tmp_path):
    out = tmp_path / "mirrored.npz"
    finish(start("mirrored", out))
    assert_same(out, single)


def test_multi_worker_strategy(single, tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(probe.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    configs = [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)
    ]
    outs = [tmp_path / f"worker{i}.npz" for i in range(2)]
    processes = [
        start("worker", out, TF_CONFIG=config) for out, config in zip(outs, configs, strict=True)
    ]
    for process in processes:
        finish(process)
    for out in outs:
        assert_same(out, single)


def test_data_parallel_on_jax(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs jax")
    reference, out = tmp_path / "single.npz", tmp_path / "parallel.npz"
    two_devices = "--xla_force_host_platform_device_count=2"
    finish(start("single", reference, KERAS_BACKEND="jax"))
    finish(start("data_parallel", out, KERAS_BACKEND="jax", XLA_FLAGS=two_devices))
    assert_same(out, reference)
