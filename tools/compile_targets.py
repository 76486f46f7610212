"""What XLA makes of the layers for a CPU, a TPU and a GPU, without owning the latter two; a table.

    python tools/compile_targets.py [--backends NAME ...] [--targets NAME ...] [--layers TEXT ...]

Each layer is lowered to StableHLO from TensorFlow and from JAX, forward and with its gradients, in
float32 and in mixed bfloat16, and compiled for this machine's CPU, a TPU v5e and an H100 by
compile-only clients of JAX (`pip install .[targets]`). The columns:

- flops, and bytes accessed, as XLA's own cost analysis of the compiled program has them; bytes over
  the least possible, which is every input read once and every output written once. A gradient
  reads x, the weights and what comes from behind, and writes the output and all gradients. On an
  H100, convolutions and products are calls of libraries that the analysis knows nothing of; on a
  TPU it counts what is moved within the chip too;
- kernels: how many fusions, calls and other operations are launched one after the other;
- callbacks to the host, of which there must be none.

Shapes are fixed while compiling: a layer compiles once for each. Exit status 1 if anything does not
compile or calls the host.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What a compile-only client asks for in place of a device.
_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# From NVIDIA's data sheet of the H100 SXM and the CUDA occupancy tables for compute capability 9.0.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 device_memory_size: 85899345920
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
"""
BACKENDS = ("tensorflow", "jax")
TARGETS = ("cpu", "tpu", "h100")
POLICIES = ("float32", "mixed_bfloat16")
PASSES = ("forward", "gradients")
HEADER = (
    "layer", "from", "dtype", "pass", "for", "compiled", "flops", "bytes, MB", "× least", "kernels",
    "callbacks",
)  # fmt: skip
_CALLBACK = re.compile(r"callback|SendToHost|RecvFromHost|EagerPyFunc|host_transfer", re.IGNORECASE)
_DTYPE_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "i64": 8, "i1": 1, "ui32": 4}


class Case(NamedTuple):
    """A layer and the shape of its input."""

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--layers", nargs="*", default=[""], metavar="TEXT", help="in their names")
    args = parser.parse_args()
    missing = missing_for(args.targets)
    if missing:
        print(f"Not installed: {', '.join(missing)}. Try `pip install .[targets]`.")
        return 2
    for cells in (HEADER, ["---"] * len(HEADER)):
        print(row(cells), flush=True)
    failed = False
    for backend in args.backends:
        # Keras takes its backend when it is imported.
        code = f"import compile_targets as c; c.report({args.targets!r}, {args.layers!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=environment(backend),
            check=False,
        )
        failed = failed or done.returncode != 0
    return int(failed)


def missing_for(targets) -> list[str]:
    """The packages that are not installed."""
    needs = {"tpu": ["libtpu"], "h100": ["jax_plugins.xla_cuda12", "nvidia.cuda_nvcc"]}
    names = ["jax", *(name for target in targets for name in needs.get(target, []))]
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def environment(backend: str) -> dict[str, str]:
    """Of a process that compiles what one backend lowers."""
    found = {**os.environ, **_TPU, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    found["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if _installed("nvidia.cuda_nvcc"):
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
        [folder] = (spec and spec.submodule_search_locations) or [""]
        found["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={folder}"
        found["PATH"] = f"{folder}/bin:{found.get('PATH', '')}"
    return found


def report(targets: tuple[str, ...], texts: list[str]) -> None:
    """Print the rows of the backend of this process; leave it with status 1 on a failure."""
    import keras

    compilers = {target: compiler(target) for target in targets}
    failed = False
    for policy in POLICIES:
        keras.config.set_dtype_policy(policy)
        for case in cases():
            if not any(text in case.name for text in texts):
                continue
            for passes in PASSES:
                lower = (
                    lowered_by_jax if keras.backend.backend() == "jax" else lowered_by_tensorflow
                )
                module = lower(case, passes == "gradients")
                for target, compile_ in compilers.items():
                    cells, fine = measured(module, compile_)
                    failed = failed or not fine
                    about = [case.name, keras.backend.backend(), policy, passes, target]
                    print(row([*about, *cells]), flush=True)
    sys.exit(int(failed))


def cases() -> Iterator[Case]:
    """The layers, and beside them the bare ones and Keras's own."""
    from keras import layers

    import kerasnorm as kn

    rows, images = (4096, 1024), (32, 28, 28, 64)
    yield Case("keras LayerNormalization", layers.LayerNormalization, rows)
    yield Case("LayerNorm", kn.LayerNorm, rows)
    yield Case("LayerNorm, sample", lambda: kn.LayerNorm(axis="sample"), images)
    yield Case("keras BatchNormalization", layers.BatchNormalization, images)
    yield Case("BatchNorm", kn.BatchNorm, images)
    yield Case("Affine", kn.Affine, images)
    yield Case("Dense", lambda: layers.Dense(1024), rows)
    yield Case("WeightNorm(Dense)", lambda: kn.WeightNorm(layers.Dense(1024)), rows)
    yield Case("CosineNorm(Dense)", lambda: kn.CosineNorm(layers.Dense(1024)), rows)
    yield Case("Conv2D", lambda: layers.Conv2D(64, 3, padding="same"), images)
    for name, norm, arguments in (
        ("WeightNorm(Conv2D)", kn.WeightNorm, {}),
        ("WeightNorm(Conv2D), mean_only", kn.WeightNorm, {"mean_only": "batch"}),
        ("CosineNorm(Conv2D)", kn.CosineNorm, {"rescale": True}),
    ):
        yield Case(name, functools.partial(around_conv, norm, arguments), images)
    cells = kn.layers
    for cell in (cells.LayerNormSimpleRNNCell, cells.LayerNormLSTMCell, cells.LayerNormGRUCell):
        yield Case(cell.__name__, functools.partial(recurrent, cell), (64, 32, 128))


def around_conv(norm: Any, arguments: dict[str, Any]) -> Any:
    """A norm around the convolution that stands in the table too."""
    from keras import layers

    return norm(layers.Conv2D(64, 3, padding="same"), **arguments)


def recurrent(cell: Any) -> Any:
    """A cell in its loop."""
    from keras import layers

    return layers.RNN(cell(128))


def lowered_by_tensorflow(case: Case, gradients: bool) -> str:
    """StableHLO of a layer in training, from TensorFlow."""
    import tensorflow as tf

    layer = case.make()
    x = tf.zeros(case.shape, layer.compute_dtype)
    behind = tf.zeros_like(layer(x, **_training(layer)))

    @tf.function(jit_compile=True, autograph=False)
    def forward(x):
        return layer(x, **_training(layer))

    @tf.function(jit_compile=True, autograph=False)
    def backward(x, behind):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **_training(layer))
        weights = [v.value for v in layer.trainable_variables]
        return y, tape.gradient(y, [x, *weights], behind)

    ir = forward.experimental_get_compiler_ir(x)
    if gradients:
        ir = backward.experimental_get_compiler_ir(x, behind)
    # Variables that are assigned to leave copies behind, which StableHLO has no name for.
    return re.sub(
        r"mhlo\.copy (%\w+) : (tensor<\w+>)",
        r"stablehlo.reshape \1 : (\2) -> \2",
        ir(stage="stablehlo"),
    )


def lowered_by_jax(case: Case, gradients: bool) -> str:
    """The same from JAX."""
    import jax
    import jax.numpy as jnp

    layer = case.make()
    layer.build(case.shape)
    x = jnp.zeros(case.shape, layer.compute_dtype)
    weights = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def forward(weights, others, x):
        return layer.stateless_call(weights, others, x, **_training(layer))

    def backward(weights, others, x, behind):
        y, back, others = jax.vjp(
            lambda weights, x: forward(weights, others, x), weights, x, has_aux=True
        )
        return y, back(behind), others

    if gradients:
        behind = jnp.zeros_like(forward(weights, others, x)[0])
        return jax.jit(backward).lower(weights, others, x, behind).as_text()
    return jax.jit(forward).lower(weights, others, x).as_text()


def _training(layer) -> dict[str, bool]:
    return {"training": True} if layer._call_has_training_arg else {}


def compiler(target: str) -> Callable[[str], Any]:
    """From the text of a StableHLO module to an executable for one target."""
    import jax
    from jax._src import compiler as options  # what topologies has is for JAX's own functions
    from jax._src.interpreters import mlir
    from jax.experimental import topologies
    from jaxlib import _jax
    from jaxlib.mlir import ir

    if target == "cpu":
        devices = jax.devices("cpu")[:1]
    elif target == "tpu":
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[:1]
    else:
        devices = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
        ).devices[:1]
    client = devices[0].client
    # A client with devices loads what it compiles.
    compile_ = client.compile_and_load if target == "cpu" else client.compile

    def compiled(text: str) -> Any:
        with mlir.make_ir_context():
            module = ir.Module.parse(text)
            chosen = options.get_compile_options(num_replicas=1, num_partitions=1)
            return compile_(module, _jax.DeviceList(tuple(devices)), chosen)

    return compiled


def measured(module: str, compile_: Callable[[str], Any]) -> tuple[list[str], bool]:
    """The cells of one module and target, and whether there is nothing to complain about."""
    try:
        executable = compile_(module)
    except Exception as error:
        return [f"**{str(error).splitlines()[0][:120]}**", *[""] * 5], False
    cost = costs(executable)
    [hlo] = executable.hlo_modules()
    text = hlo.to_string()
    callbacks = len(_CALLBACK.findall(text)) + len(_CALLBACK.findall(module))
    accessed, least = cost["bytes accessed"], least_bytes(module)
    return [
        "yes",
        f"{cost.get('flops', 0):.3g}",
        f"{accessed / 1e6:.1f}",
        f"{accessed / least:.2f}",
        str(launched(text)),
        str(callbacks),
    ], callbacks == 0


def costs(executable: Any) -> dict[str, float]:
    """XLA's cost analysis of the compiled program."""
    import jax
    from jaxlib import _jax

    try:
        found = executable.cost_analysis()
    except jax.errors.JaxRuntimeError:  # the compile-only client of a GPU has none
        [module] = executable.hlo_modules()
        found = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    return found[0] if isinstance(found, list) else found


def launched(hlo: str) -> int:
    """The operations of the entry computation that do something, one after the other."""
    entry = hlo[hlo.index("\nENTRY ") :]
    entry = entry[: entry.index("\n}")]
    idle = r"parameter|constant|tuple|get-tuple-element|bitcast|copy-start|copy-done"
    operations = re.findall(r"^\s+(?:ROOT )?%?\S+ = .*?\s([a-z][a-z0-9-]*)\(", entry, re.MULTILINE)
    return sum(not re.fullmatch(idle, operation) for operation in operations)


def least_bytes(module: str) -> int:
    """Of all inputs and outputs of a module's main function."""
    [signature] = re.findall(r"func\.func (?:public )?@main\((.*)", module)
    sizes = re.findall(r"tensor<((?:\d+x)*)(\w+)>", signature)
    total = 0
    for shape, dtype in sizes:
        entries = 1
        for size in shape.split("x")[:-1]:
            entries *= int(size)
        total += entries * _DTYPE_BYTES[dtype]
    return total


def row(cells) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
