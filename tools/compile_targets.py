"""What XLA makes of the layers for a CPU, a TPU and a GPU, without owning the latter two; a table.

    python tools/compile_targets.py [--backends NAME ...] [--targets NAME ...] [--layers TEXT ...]
                                    [--material FOLDER]

Each layer is lowered to StableHLO from TensorFlow and from JAX, forward and with its gradients, in
float32 and in mixed bfloat16, and compiled for this machine's CPU, a TPU v5e and an H100 by
compile-only clients of JAX (`pip install .[targets]`). The columns:

- flops, and bytes accessed, as XLA's own cost analysis of the compiled program has them; bytes over
  the least possible, which is every input read once and every output written once. A gradient
  reads x, the weights and what comes from behind, and writes the output and all gradients. On an
  H100, convolutions and products are calls of libraries that the analysis knows nothing of; on a
  TPU it counts what is moved within the chip too, so that there
- off chip stands beside it: the operands and results that lie in the TPU's main memory, over the
  least possible;
- kernels: how many fusions, calls and other operations are launched one after the other;
- dynamic: sizes that are not fixed in the program, for which it would be compiled again;
- callbacks to the host.

There must be no dynamic sizes and no callbacks. The last rows are the training step, SGD included,
of fashion_resnet of the test material, and of what `swap_norms` makes of it. Exit status 1 if
anything does not compile, calls the host or has dynamic sizes.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
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
PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "h100": "gpu"}
TARGETS = tuple(PLATFORMS)
POLICIES = ("float32", "mixed_bfloat16")
PASSES = ("forward", "gradients")
HEADER = (
    "layer", "from", "dtype", "pass", "for", "compiled", "flops", "bytes, MB", "× least",
    "off chip", "kernels", "dynamic", "callbacks",
)  # fmt: skip
_CALLBACK = re.compile(r"callback|SendToHost|RecvFromHost|EagerPyFunc|host_transfer", re.IGNORECASE)
_DTYPE_BYTES = {
    "f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "i64": 8, "i1": 1, "ui32": 4,
    "s32": 4, "s64": 8, "u32": 4, "pred": 1,
}  # fmt: skip
_IDLE = "parameter|constant|tuple|get-tuple-element|bitcast|copy-done"
MODEL = "fashion_resnet"


class Case(NamedTuple):
    """A layer and the shape of its input."""

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...]


class Program(NamedTuple):
    """What is compiled, and how to make the function and what it is called on."""

    name: str
    dtype: str
    passes: str
    make: Callable[[], tuple[Any, tuple]]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="*", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--layers", nargs="*", default=[""], metavar="TEXT", help="in their names")
    default = os.environ.get("KERASNORM_MATERIAL", "../shared/material")
    parser.add_argument("--material", type=Path, default=Path(default), metavar="FOLDER")
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
        model = str((args.material / "models" / f"{MODEL}.keras").resolve())
        code = (
            f"import compile_targets as c; c.report({args.targets!r}, {args.layers!r}, {model!r})"
        )
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


def report(targets: tuple[str, ...], texts: list[str], model: str) -> None:
    """Print the rows of the backend of this process; leave it with status 1 on a failure."""
    import keras

    from kerasnorm.math import sums

    compilers = {target: compiler(target) for target in targets}
    failed = False
    for program in programs(Path(model)):
        if not any(text in program.name for text in texts):
            continue
        for target, compile_ in compilers.items():
            with sums.assuming(PLATFORMS[target]):
                module = lowered(*program.make())
            cells, fine = measured(module, compile_)
            failed = failed or not fine
            about = [program.name, keras.backend.backend(), program.dtype, program.passes, target]
            print(row([*about, *cells]), flush=True)
    sys.exit(int(failed))


def programs(path: Path) -> Iterator[Program]:
    """Each layer in both precisions, forward and back, and training steps of a model."""
    for policy in POLICIES:
        for case in cases():
            for passes in PASSES:
                make = functools.partial(layer_step, case, policy, passes == "gradients")
                yield Program(case.name, policy, passes, make)
    if not path.exists():
        print(f"{MODEL} is left out: there is no {path}", file=sys.stderr)
        return
    for to in ("batch", "weight", "layer", "group", "cosine"):
        make = functools.partial(model_step, path, to)
        yield Program(f"{MODEL}, {to} norm", "float32", "training step", make)


def layer_step(case: Case, policy: str, gradients: bool) -> tuple[Any, tuple]:
    """A layer in training, in one precision."""
    import keras
    import steps

    keras.config.set_dtype_policy(policy)
    try:
        return steps.step(case.make(), case.shape, gradients)
    finally:
        keras.config.set_dtype_policy("float32")


def model_step(path: Path, to: str) -> tuple[Any, tuple]:
    """A training step of a model as it is ("batch") or swapped; its fit makes no difference."""
    import numpy as np
    import steps

    import kerasnorm as kn

    model = kn.load_model(path)
    if to != "batch":
        data = np.random.default_rng(0).uniform(size=(32, *model.input_shape[1:]))
        model = kn.swap_norms(model, to, None if to == "weight" else data.astype("float32")).model
    return steps.training_step(model, 32)


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


def lowered(function: Any, arguments: tuple) -> str:
    """A compiled function of Keras's backend as StableHLO."""
    if hasattr(function, "lower"):
        return function.lower(*arguments).as_text()
    # Variables that are assigned to leave copies behind, which StableHLO has no name for.
    return re.sub(
        r"mhlo\.copy (%\w+) : (tensor<\w+>)",
        r"stablehlo.reshape \1 : (\2) -> \2",
        function.experimental_get_compiler_ir(*arguments)(stage="stablehlo"),
    )


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
        return [f"**{str(error).splitlines()[0][:120]}**", *[""] * 7], False
    cost = costs(executable)
    [hlo] = executable.hlo_modules()
    text = hlo.to_string()
    callbacks = len(_CALLBACK.findall(text)) + len(_CALLBACK.findall(module))
    dynamic = len(re.findall(r"tensor<[\dx]*\?", module)) + len(re.findall(r"\[[\d,]*<=", text))
    accessed, least = cost["bytes accessed"], least_bytes(module)
    return [
        "yes",
        f"{cost.get('flops', 0):.3g}",
        f"{accessed / 1e6:.1f}",
        f"{accessed / least:.2f}",
        f"{bytes_off_chip(text) / least:.2f}" if "S(1)" in text else "",
        str(launched(text)),
        str(dynamic),
        str(callbacks),
    ], callbacks == dynamic == 0


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


def operations(hlo: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, operation and operands of each line of the entry computation."""
    entry = hlo[hlo.index("\nENTRY ") :]
    entry = entry[: entry.index("\n}")]
    pattern = r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(?:,|$)"
    yield from re.findall(pattern, entry, re.MULTILINE)


def launched(hlo: str) -> int:
    """The operations of the entry computation that do something, one after the other."""
    idle = f"{_IDLE}|copy-start"
    return sum(not re.fullmatch(idle, operation) for _, _, operation, _ in operations(hlo))


def bytes_off_chip(hlo: str) -> int:
    """What the entry computation reads from and writes to anything but memory space 1."""
    sizes: dict[str, int] = {}
    total = 0
    for name, type_, operation, operands in operations(hlo):
        arrays = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", type_)
        sizes[name] = sum(
            math.prod(int(n) for n in shape.split(",") if n) * _DTYPE_BYTES.get(dtype, 4)
            for dtype, shape, layout in arrays
            if "S(" not in layout
        )
        if re.fullmatch(_IDLE, operation):
            continue
        # a copy that is begun names its source among its results
        total += 0 if operation == "copy-start" else sizes[name]
        total += sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
    return total


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
