"""A folder of images as data of the command line: what the model gets, and what is refused."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm.cli.main import main
from kerasnorm.errors import DataError
from kerasnorm.fit.image_folder import ImageFolder, check_folder
from kerasnorm.graph.graph import graph_of

RNG = np.random.default_rng(0)


def write(path, shape=(9, 11, 3)):
    pixels = tf.constant(RNG.integers(0, 256, shape), "uint8")
    encode = tf.io.encode_png if path.suffix.lower() == ".png" else tf.io.encode_jpeg
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(pixels).numpy())


@pytest.fixture
def folder(tmp_path):
    """Forty images of two kinds, below and beside folders, with a file that is none."""
    found = tmp_path / "images"
    for number in range(40):
        place = found / ("", "cats", "dogs")[number % 3]
        found.mkdir(exist_ok=True)
        write(place / f"{number}{('.png', '.JPG')[number % 2]}")
    (found / "labels.txt").write_text("not an image")
    return found


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


def run(*argv) -> int:
    return main([str(argument) for argument in argv])


def model_of(*shape, batch=None):
    inputs = keras.Input(batch_shape=(batch, *shape))
    return keras.Model(inputs, layers.BatchNormalization()(inputs), name="of_images")


def all_of(images):
    return np.concatenate([np.asarray(batch) for batch in images])


def rows(array):
    return sorted(map(bytes, array))


@pytest.mark.parametrize(
    ("shape", "mode"), [((8, 6, 1), "grayscale"), ((8, 6, 3), "rgb"), ((8, 6, 4), "rgba")]
)
def test_images_are_what_keras_reads(folder, shape, mode):
    if mode == "rgba":  # JPEG has no alpha
        for path in folder.rglob("*.JPG"):
            path.unlink()
    images = all_of(ImageFolder(folder, graph_of(model_of(*shape)), seed=0))
    expected = keras.utils.image_dataset_from_directory(
        folder, labels=None, color_mode=mode, image_size=(8, 6), shuffle=False, verbose=False
    )
    assert images.shape == (20 if mode == "rgba" else 40, *shape)
    assert images.max() > 200
    assert rows(images) == rows(all_of(expected))


def test_channels_first_are_transposed(folder):
    last, first = (
        all_of(ImageFolder(folder, graph_of(model_of(*shape)), seed=0))
        for shape in ((8, 6, 3), (3, 8, 6))
    )
    np.testing.assert_array_equal(first, last.transpose(0, 3, 1, 2))


def test_the_order_is_random_and_always_the_same(folder):
    root = graph_of(model_of(8, 6, 3))
    images = ImageFolder(folder, root, seed=0)
    again, other, large = (ImageFolder(folder, root, seed=s) for s in (0, 1, 2**40))
    np.testing.assert_array_equal(all_of(images), all_of(images))
    np.testing.assert_array_equal(all_of(images), all_of(again))
    assert (all_of(images) != all_of(other)).any()
    assert len(all_of(large)) == 40


def test_batches_are_of_the_size_that_a_model_takes(folder):
    images = ImageFolder(folder, graph_of(model_of(8, 6, 3, batch=20)), seed=0)
    assert [len(batch) for batch in images] == [20, 20]


@pytest.mark.parametrize("target", ["layer", "cosine"])
def test_a_swap_on_a_folder(model, folder, tmp_path, target, capsys, closed_form):
    out, report = tmp_path / "out.keras", tmp_path / "out.json"
    arguments = ("--to", target, "--data", folder, "--output", out, "--report", report)
    assert run("swap", model, *arguments) == 0
    said = capsys.readouterr()
    assert not said.err
    assert "1 calibrated" in said.out
    found = json.loads(report.read_text())
    assert found["data"] == "images"
    assert any("resized to 8x8, and their pixels are from 0 to 255" in n for n in found["notes"])
    images = all_of(ImageFolder(folder, graph_of(kerasnorm.load_model(model)), seed=0))
    expected = kerasnorm.swap_norms(kerasnorm.load_model(model), target, images).model
    for a, b in zip(keras.models.load_model(out).variables, expected.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pixels_are_refused_where_the_model_knows_others(model, folder, capsys, closed_form):
    trained = kerasnorm.load_model(model)
    x = np.random.default_rng(0).normal(size=(200, *trained.input_shape[1:]))
    kerasnorm.estimate_statistics(trained, x)
    trained.save(model)
    swap = "swap", model, "--to", "layer", "--data", folder
    assert run(*swap) == 2
    assert "--allow-unlike-data" in capsys.readouterr().err
    assert run(*swap, "--allow-unlike-data") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith(", 1 warning")
    assert run(*swap, "--allow-unlike-data", "--strict") == 2
    assert "must be like that of the training" in capsys.readouterr().err


@keras.saving.register_keras_serializable(package="test_image_folder")
class Code(keras.Model):
    """A model with a `call` of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.conv(x))


def test_a_model_with_code_takes_a_folder(folder, tmp_path, capsys, closed_form):
    model = Code()
    model(np.zeros((1, 8, 8, 3), "float32"))
    model.save(tmp_path / "code.keras")
    assert run("swap", tmp_path / "code.keras", "--to", "layer", "--data", folder) != 1
    assert "AttributeError" not in capsys.readouterr().err


def test_some_of_the_images(model, folder, tmp_path, closed_form):
    report = tmp_path / "out.json"
    arguments = ("--data", folder, "--max-samples", 20, "--report", report)
    assert run("swap", model, "--to", "layer", *arguments) == 0
    notes = json.loads(report.read_text())["notes"]
    assert any(note.startswith("the first 20 samples of the stream were used") for note in notes)


def test_distilled_and_exported_with_a_folder(model, folder, tmp_path, capsys, closed_form):
    arguments = ("--data", folder, "--distill", "--onnx", tmp_path / "out.onnx")
    assert run("swap", model, "--to", "layer", *arguments) == 0
    assert "distilled; on held-out samples" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"this is text", b"", b"\xff\xd8\xff\xe0 no more"])
def test_a_file_that_is_no_image_is_named(model, folder, tmp_path, content, capsys):
    broken = folder / "dogs" / "broken.jpg"
    broken.write_bytes(content)
    out = tmp_path / "out.keras"
    assert run("swap", model, "--to", "layer", "--data", folder, "--output", out) == 2
    said = capsys.readouterr().err
    assert f"'{broken}' cannot be read as one" in said
    assert said.endswith(". Take it out of the folder.\n")
    assert "[Op:" not in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "model.keras"]
    broken.unlink()
    assert run("swap", model, "--to", "weight", "--data", folder, "--output", out) == 0


def test_an_image_that_vanishes_is_named(folder):
    images = ImageFolder(folder, graph_of(model_of(8, 6, 3)), seed=0)
    (folder / "dangling.png").symlink_to(folder / "none.png")
    with pytest.raises(DataError, match=r"dangling\.png' cannot be read as one: NotFoundError"):
        list(images)


@pytest.mark.parametrize("names", [(), ("a.txt", "below/x.npy", ".hidden")])
def test_a_folder_without_images(model, tmp_path, names, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in names:
        (empty / name).parent.mkdir(exist_ok=True)
        (empty / name).write_text("")
    with pytest.raises(DataError, match=f"must hold images. '{empty}' has none"):
        check_folder(empty)
    assert run("swap", model, "--to", "layer", "--data", empty) == 2
    assert f"'{empty}' has none, nor has a folder below it." in capsys.readouterr().err


def test_too_few_images(model, tmp_path, capsys):
    for number in range(9):
        write(tmp_path / "few" / f"{number}.png")
    assert run("swap", model, "--to", "layer", "--data", tmp_path / "few") == 2
    assert "at least 10 samples. Received 9" in capsys.readouterr().err


def test_an_image_is_no_folder(model, folder, capsys):
    assert run("swap", model, "--to", "layer", "--data", folder / "0.png") == 2
    assert "Of images, name the folder." in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 2), (8, 3), (5,), (4, 8, 8, 3), (8, 8)])
def test_models_that_take_no_image_of_one_size(folder, shape):
    with pytest.raises(DataError, match=r"model 'of_images': .*fixed size.*Received inputs") as e:
        ImageFolder(folder, graph_of(model_of(*shape)), seed=0)
    assert str((None, *shape)) in str(e.value)
    assert str(e.value).endswith("Give its inputs as an .npy or .npz file.")


def test_models_that_take_several_inputs(folder, tmp_path, capsys):
    a, b = (keras.Input((8, 8, 3)) for _ in range(2))
    path = tmp_path / "two.keras"
    keras.Model([a, b], layers.BatchNormalization()(a + b)).save(path)
    assert run("swap", path, "--to", "layer", "--data", folder) == 2
    assert "(None, 8, 8, 3) and (None, 8, 8, 3)" in capsys.readouterr().err


@pytest.mark.slow
def test_five_thousand_images(model, tmp_path, capsys):
    for number in range(5000):
        write(tmp_path / "many" / f"{number}.jpg", (32, 32, 3))
    (tmp_path / "many" / "below").mkdir()
    arguments = ("--to", "layer", "--data", tmp_path / "many")
    assert run("swap", model, *arguments, "--output", tmp_path / "out.keras") == 0
    assert "the first 2,048 samples of the stream" in capsys.readouterr().out
    (tmp_path / "many" / "below" / "text.jpg").write_text("text")
    assert run("swap", model, *arguments, "--max-samples", "all") == 2
    assert "below/text.jpg' cannot be read" in capsys.readouterr().err
