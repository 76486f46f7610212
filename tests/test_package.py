"""What importing and installing the package does."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_import_is_light():
    code = (
        "import keras, time, sys, json\n"
        "before = set(sys.modules)\n"  # Keras imports matplotlib and sklearn where it finds them
        "start = time.process_time()\n"
        "import kerasnorm\n"
        "seconds = time.process_time() - start\n"
        "import kerasnorm.onnx.export\n"  # which loads the converters when it is called
        "heavy = {'tf2onnx', 'onnxruntime', 'onnx', 'matplotlib', 'sklearn'}\n"
        "print(json.dumps([seconds, sorted(heavy & (set(sys.modules) - before))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    assert not heavy
    # far from the promised 0.2 s, so that a busy machine does not fail the test
    assert seconds < 1.0


def test_public_names_have_docstrings_with_examples():
    import kerasnorm

    for name in ("swap_norms", "fold_norms", "export_onnx", "load_model", "Affine", "WeightNorm"):
        assert ">>>" in getattr(kerasnorm, name).__doc__, name


def test_version_is_said_once():
    import kerasnorm

    assert kerasnorm.__version__ == kerasnorm.version.__version__


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "kerasnorm/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests", "tools"))]
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[-1] for name in archive.getnames()]
    assert "tests/test_swap.py" in names
    assert "README.md" in names
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, r'{target}')\n"
        f"import kerasnorm; assert kerasnorm.__file__.startswith(r'{target}')\n"
        "import keras\n"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3),"
        " keras.layers.BatchNormalization()])\n"
        "assert kerasnorm.swap_norms(model, 'weight').report.counts() == "
        "{'WeightNorm(Dense)': 1}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
