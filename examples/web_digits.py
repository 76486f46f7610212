"""Draw a digit in a web page, and a swapped network answers in the browser.

    python examples/web_digits.py --folder page --serve [PORT]
    python examples/web_digits.py --folder page --model digits.keras --to layer

trains the small network of `kerasnorm demo` (or takes a model of yours, 8x8 grey pixels to ten
digits), takes its BatchNorm out, exports it, and puts everything that the page needs into one
folder, for any web server: the page (examples/web), model.onnx and ONNX Runtime Web. The page asks
for nothing beyond its own folder.

ONNX Runtime Web comes from npm, which Node brings along: `--runtime` names a folder in which
`npm install onnxruntime-web` was run; without it the current folder and those above are searched,
and then it is installed once, in a cache folder. Needs `pip install "kerasnorm[demo]"`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np

import kerasnorm
from kerasnorm.cli import demo
from kerasnorm.errors import KerasNormError

PAGE = Path(__file__).with_name("web")
PACKAGE = "onnxruntime-web@^1.20"
# ONNX Runtime Web without its GPU backends, which a network of this size has no use for.
RUNTIME_FILES = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
COPIES = 3
EXAMPLES = 50


class Handler(SimpleHTTPRequestHandler):
    """Files with the types that browsers insist on, whatever this system's own table says."""

    extensions_map = {  # noqa: RUF012, a class attribute in the standard library too
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def log_message(self, *_) -> None:
        """Nothing for each file."""


@dataclass(frozen=True)
class Page:
    """The folder put together, the swapped model in it, and its accuracy on the test images."""

    folder: Path
    model: keras.Model
    accuracy: float


def main(argv: Sequence[str] | None = None) -> None:
    """Train or load, swap, export, put the folder together, and serve it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the page goes")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a trained model to take instead"
    )
    parser.add_argument("--to", choices=("weight", "layer"), default="weight")
    parser.add_argument("--runtime", type=Path, metavar="FOLDER", help="that has onnxruntime-web")
    parser.add_argument("--serve", type=int, nargs="?", const=8000, metavar="PORT")
    options = parser.parse_args(argv)
    try:
        run(options)
    except KerasNormError as error:
        parser.exit(1, f"{error}\n")


def run(options: argparse.Namespace) -> None:
    """The folder, and then the server."""
    runtime = runtime_files(options.runtime)  # before training, in case that it is not there
    digits = demo.load_digits()
    source = kerasnorm.load_model(options.model) if options.model else trained(digits)
    page = build(source, options.to, digits, options.folder, runtime)
    size = sum(file.stat().st_size for file in page.folder.iterdir())
    print(f"{page.folder}: right on {page.accuracy:.1%} of the test images, {size / 1e6:.0f} MB")
    if options.serve is None:
        print(f"Serve it with: python -m http.server --bind 127.0.0.1 -d {page.folder}")
        return
    with server(page.folder, options.serve) as serving:
        print(f"http://127.0.0.1:{serving.server_port}/ (Ctrl+C ends it)", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()


def trained(digits: demo.Digits) -> keras.Model:
    """The demo's network, trained on the training images and warped copies of them.

    Scans of one form are all upright and alike; what people draw with a mouse is not.
    """
    random = np.random.default_rng(demo.SEED)
    copies = [digits.x_train, *(warped(digits.x_train, random) for _ in range(COPIES))]
    order = random.permutation(len(copies) * len(digits.x_train))
    x, y = np.concatenate(copies)[order], np.tile(digits.y_train, len(copies))[order]
    keras.utils.set_random_seed(demo.SEED)
    model = demo.residual_network()
    print("Training …", flush=True)
    demo.train(model, demo.Digits(x, y, digits.x_test, digits.y_test))
    return model


def warped(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image slanted, stretched and moved a little, at random."""
    from scipy.ndimage import affine_transform

    out = np.empty_like(images)
    centre = np.full(2, (images.shape[1] - 1) / 2)
    # Rows hardly: in the data every digit reaches from the first to the last.
    most = np.array([[0.1, 0.1], [0.3, 0.2]])
    for image, target in zip(images[..., 0], out, strict=True):
        matrix = np.eye(2) + random.uniform(-most, most)
        offset = centre - matrix @ centre + random.uniform((-0.3, -0.6), (0.3, 0.6))
        target[..., 0] = affine_transform(image, matrix, offset, order=1)
    return out


def build(
    source: keras.Model, to: str, digits: demo.Digits, folder: Path, runtime: Sequence[Path]
) -> Page:
    """Swap the model, export it, and put the page together in `folder`.

    Raises:
        KerasNormError: If the model does not take 8x8 grey pixels and answer with ten numbers.
    """
    if source.input_shape != (None, 8, 8, 1) or source.output_shape != (None, 10):
        raise KerasNormError(
            "The model must take (None, 8, 8, 1) and answer (None, 10). "
            f"Received {source.input_shape} and {source.output_shape}.",
            model=source.name,
        )
    data = digits.x_train if to == "layer" else None
    swap = kerasnorm.swap_norms(source, to, data)
    print(swap.report.summary())
    answer = swap.model.predict(digits.x_test, verbose=0)
    accuracy = float(np.mean(answer.argmax(-1) == digits.y_test))

    folder.mkdir(parents=True, exist_ok=True)
    kerasnorm.export_onnx(swap, folder / "model.onnx", inputs=digits.x_test[:64])
    for file in (*PAGE.iterdir(), *runtime):
        shutil.copyfile(file, folder / file.name)
    about = {
        "norm": f"{to} norm",
        "accuracy": accuracy,
        # Whether the page has to take the softmax.
        "logits": not np.allclose(answer.sum(-1), 1, atol=1e-3),
        "examples": [
            {"pixels": image.ravel().tolist(), "label": int(label)}
            for image, label in zip(digits.x_test[:EXAMPLES], digits.y_test[:EXAMPLES], strict=True)
        ],
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return Page(folder, swap.model, accuracy)


def runtime_files(given: Path | None = None) -> list[Path]:
    """The files of ONNX Runtime Web: in the folder given, or wherever they are found or installed.

    Raises:
        KerasNormError: If they are not there and npm cannot fetch them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache / "kerasnorm" / "onnxruntime-web"
    here = Path.cwd()
    for folder in [given] if given else [here, *here.parents, cache]:
        # where npm was run, the package itself, or just its files
        for below in ("node_modules/onnxruntime-web/dist", "dist", "."):
            files = [folder / below / name for name in RUNTIME_FILES]
            if all(file.is_file() for file in files):
                return files
    if given:
        raise KerasNormError(
            f"{given} must have {', '.join(RUNTIME_FILES)} in node_modules/onnxruntime-web/dist.",
            hint=f"Run: npm install --prefix {given} {PACKAGE}",
        )
    install(cache)
    return runtime_files(cache)


def install(folder: Path) -> None:
    """`npm install` ONNX Runtime Web in a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise KerasNormError(
            "ONNX Runtime Web comes from npm, which is not installed.",
            hint="Install Node (https://nodejs.org), or name a folder that has it with --runtime.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    quietly = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    at_most_minutes = ("--fetch-retries=1", "--fetch-timeout=60000")
    command = [npm, "install", PACKAGE, "--prefix", str(folder), *quietly, *at_most_minutes]
    print(f"npm install {PACKAGE} in {folder} …", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = "; ".join(done.stderr.replace("npm error ", "").split("\n")[:3])
        raise KerasNormError(
            f"`npm install {PACKAGE}` failed ({reason}).",
            hint="Name a folder that has it with --runtime.",
        )


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the folder for this machine only, at a free port if it is 0."""
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise KerasNormError(
            f"Port {port} cannot be used ({error.strerror}).", hint="Try --serve 0."
        ) from error


if __name__ == "__main__":
    main()
