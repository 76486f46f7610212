"""Data of any size: a subset of large arrays, the first batches of streams, and what is said."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tiny_models

import kerasnorm
from kerasnorm.errors import DataError
from kerasnorm.fit.batches import batches_of
from kerasnorm.fit.data import input_batches
from kerasnorm.fit.sample_limit import MAX_SAMPLES, SampleLimit
from kerasnorm.fit.split import is_reported_on
from kerasnorm.graph.graph import graph_of

pytestmark = pytest.mark.usefixtures("closed_form")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(300, 8, 8, 3)).astype("float32")


class Forever(keras.utils.PyDataset):
    """Images without end, and how many batches of them were read."""

    read = 0

    @property
    def num_batches(self):
        return None

    def __getitem__(self, number):
        self.read += 1
        return IMAGES[number % 30 :][:20], None


def forever(read):
    for number in itertools.count():
        read.append(number)
        yield IMAGES[:20]


def batches(data, most, *, batch_size=32, seed=0):
    """What a model is fed, and the notes of the limit."""
    limit = SampleLimit(most, seed)
    root = graph_of(tiny_models.conv_bn_relu())
    found = [arrays[0] for arrays in input_batches(root, data, batch_size, limit)]
    return found, limit.notes


def numbered(count):
    """Images that say at each pixel which they are."""
    return np.broadcast_to(np.arange(count, dtype="float32")[:, None, None, None], (count, 8, 8, 3))


def numbers(found):
    return np.concatenate(found)[:, 0, 0, 0].astype(int)


@pytest.mark.parametrize("most", [300, 301, None])
def test_data_that_is_no_larger_is_used_as_it_comes(most):
    found, notes = batches(IMAGES, most)
    assert notes == []
    for start, batch in zip(range(0, 300, 32), found, strict=True):
        np.testing.assert_array_equal(batch, IMAGES[start : start + 32])


def test_a_swap_of_little_data_is_that_of_all_of_it():
    model = tiny_models.conv_bn_relu()
    swaps = [
        kerasnorm.swap_norms(model, "layer", IMAGES, **limit)
        for limit in ({}, {"max_samples": None}, {"max_samples": 300})
    ]
    assert not any("samples were used" in note for note in swaps[0].report.notes)
    for swap in swaps[1:]:
        for a, b in zip(swap.model.variables, swaps[0].model.variables, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_subset_is_random_and_of_the_parts_of_the_whole():
    found, notes = batches(numbered(5000), 100)
    said = numbers(found)
    assert [len(batch) for batch in found] == [32, 32, 32, 4]
    assert len(set(said)) == 100
    assert (np.diff(said) < 0).any()  # no longer in order
    np.testing.assert_array_equal(said % 10, np.arange(100) % 10)
    assert notes == ["100 of 5,000 samples were used, drawn at random; `max_samples` sets how many"]
    again, other = (numbers(batches(numbered(5000), 100, seed=seed)[0]) for seed in (0, 1))
    np.testing.assert_array_equal(again, said)
    assert (other != said).any()


def test_whatever_the_limits_no_sample_is_reported_on_that_was_fitted_to():
    first = SampleLimit(500, seed=3).subset(4321)
    second = SampleLimit(3000, seed=4).subset(4321)
    reported = first[is_reported_on(np.arange(500))]
    fitted = second[~is_reported_on(np.arange(3000))]
    assert not set(reported) & set(fitted)
    assert is_reported_on(reported).all()


def test_sorted_classes_are_in_every_part():
    labels = np.sort(np.arange(5000) % 10)
    order = SampleLimit(1000, seed=0).subset(5000)
    for part in (4, 9):
        counts = np.bincount(labels[order[part::10]], minlength=10)
        assert counts.min() >= 2
    # the first batches, of which much is decided, too
    assert len(set(labels[order[:64]])) == 10


def test_several_inputs_stay_together():
    x, y = numbered(500), -numbered(500)[:, :4, 0]
    for data in ({"a": x, "b": y}, (x, y), [x, y]):
        seen = list(batches_of(data, 32, SampleLimit(50, seed=0)))
        assert {type(batch) for batch in seen} == {type(data)}
        pairs = [list(b.values()) if isinstance(b, dict) else b for b in seen]
        a, b = (np.concatenate(column) for column in zip(*pairs, strict=True))
        assert a.shape == (50, 8, 8, 3)
        assert b.shape == (50, 4, 3)
        np.testing.assert_array_equal(a[:, 0, 0, 0], -b[:, 0, 0])


class Rows:
    """What files and tables have in common with arrays: a shape, and slices."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.read = []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.read.extend(range(len(self._array))[rows])
        return self._array[rows]


def test_other_arrays_are_read_in_order_and_no_further_than_needed(monkeypatch):
    rows = Rows(numbered(500))
    found = numbers(batches(rows, 40)[0])
    assert len(rows.read) == 40
    assert rows.read == sorted(rows.read)
    np.testing.assert_array_equal(found, numbers(batches(numbered(500), 40)[0]))
    tensor = keras.ops.convert_to_tensor(numbered(500))
    np.testing.assert_array_equal(found, numbers(batches(tensor, 40)[0]))
    monkeypatch.setattr("kerasnorm.fit.batches._READ_AT_ONCE", 2000)  # in several pieces
    np.testing.assert_array_equal(found, numbers(batches(numbered(500), 40, batch_size=7)[0]))


def test_batches_of_a_fixed_size_stay_whole():
    inputs = keras.Input(batch_shape=(24, 8, 8, 3))
    root = graph_of(keras.Model(inputs, keras.layers.BatchNormalization()(inputs)))
    stream = iter([IMAGES[:24]] * 9)
    for data, most, sizes in (
        (IMAGES, 100, [24] * 4),
        (IMAGES, 20, [24]),
        (stream, 100, [24] * 4),
        (iter([IMAGES[:24]] * 9), 20, [24]),
    ):
        found = list(input_batches(root, data, 24, SampleLimit(most, 0)))
        assert [len(arrays[0]) for arrays in found] == sizes


def test_of_a_stream_no_more_is_read_than_needed():
    read = []
    found, notes = batches(forever(read), 50)
    assert [len(batch) for batch in found] == [20, 20, 10]
    assert read == [0, 1, 2]
    assert notes == ["the first 50 samples of the stream were used; `max_samples` sets how many"]
    dataset = Forever()
    assert sum(map(len, batches(dataset, 60)[0])) == 60
    assert dataset.read == 3


def test_data_without_end():
    import tensorflow as tf

    model = tiny_models.conv_bn_relu()
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(25)
    read = []
    for data in (dataset.repeat(), itertools.cycle([IMAGES]), Forever(), forever(read)):
        swap = kerasnorm.swap_norms(model, "layer", data)
        assert f"the first {MAX_SAMPLES:,} samples of the stream were used" in swap.report.notes[0]
    assert len(read) == -(-MAX_SAMPLES // 20)
    swap.update_report(forever([]), max_samples=200)
    assert swap.report.agreement.samples == 20


def test_without_a_limit_data_that_says_it_has_no_end_is_refused_and_its_advice_works():
    import tensorflow as tf

    model = tiny_models.conv_bn_relu()
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(25).repeat()
    for data, ending in (
        (dataset, dataset.take(4)),
        (Forever(), itertools.islice(Forever(), 4)),
        (itertools.cycle([IMAGES]), itertools.islice(itertools.cycle([IMAGES]), 4)),
    ):
        with pytest.raises(DataError, match=r"must end.*`data\.take\(n\)`.*`itertools\.islice"):
            kerasnorm.swap_norms(model, "layer", data, max_samples=None)
        kerasnorm.swap_norms(model, "layer", ending, max_samples=None)


def test_distillation_with_a_limit():
    student, teacher = tiny_models.conv_bn_relu(), tiny_models.conv_bn_relu()
    read = []
    kerasnorm.distill(student, teacher, forever(read), epochs=1, max_samples=100)
    assert len(read) == 5
    with pytest.raises(DataError, match="`max_samples` must be a whole number, 10 at least"):
        kerasnorm.distill(student, teacher, IMAGES, max_samples=1)


@pytest.mark.parametrize("most", [9, -1, 50.0, "all", False])
def test_limits_that_are_none(most):
    with pytest.raises(DataError, match="`max_samples` must be a whole number, 10 at least"):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "weight", max_samples=most)


def failing(batch):
    for number in itertools.count(1):
        if number == batch:
            raise OSError("the disk is gone\nand more")
        yield IMAGES[:20]


def test_an_error_of_the_stream_names_its_batch():
    model = tiny_models.conv_bn_relu()
    with pytest.raises(DataError, match=r"raised at batch 300: OSError: the disk is gone$") as info:
        kerasnorm.swap_norms(model, "layer", failing(300), max_samples=None)
    assert isinstance(info.value.__cause__, OSError)
    kerasnorm.swap_norms(model, "layer", failing(300))  # which is never reached
    with pytest.raises(DataError, match="raised at batch 1: OSError"):
        kerasnorm.swap_norms(model, "layer", failing(1))


def test_an_error_of_a_tf_dataset_names_its_batch():
    import tensorflow as tf

    def check(number):
        with tf.control_dependencies([tf.debugging.assert_less(number, tf.constant(299, "int64"))]):
            return tf.zeros((10, 8, 8, 3))

    dataset = tf.data.Dataset.range(400).map(check)
    with pytest.raises(DataError, match=r"raised at batch 300: InvalidArgumentError: ") as info:
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "layer", dataset, max_samples=5000)
    assert "\n" not in str(info.value)
    assert isinstance(info.value.__cause__, tf.errors.InvalidArgumentError)


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (IMAGES[:20, :7], r"Received \(n, 7, 8, 3\) in batch 3\."),
        (np.full((20, 8, 8, 3), np.inf), r"Received NaN or infinities in batch 3\."),
        ({"a": IMAGES, "b": IMAGES}, r"Received 'a', 'b' in batch 3; missing: 'image'\."),
        (None, r"Received: NoneType in batch 3\."),
    ],
)
def test_a_batch_that_does_not_fit_is_named(third, message):
    with pytest.raises(DataError, match=message):
        batches(iter([IMAGES, IMAGES, third]), None)


def test_inputs_of_unlike_length():
    a, b = keras.Input((5,)), keras.Input((5,))
    root = graph_of(keras.Model([a, b], keras.layers.BatchNormalization()(a + b)))
    for sizes in ((100, 90), (90, 100), (64, 96)):
        data = [np.ones((size, 5)) for size in sizes]
        with pytest.raises(DataError, match=f"for another. Received {sizes[0]} and {sizes[1]}"):
            list(input_batches(root, data, 32))


@pytest.mark.parametrize("data", [IMAGES[:0], [IMAGES[:0]], iter([]), iter([IMAGES[:0]])])
def test_no_samples(data):
    with pytest.raises(DataError, match=r"at least 10 samples\. Received 0"):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "layer", data)


def test_a_folder_is_no_data_in_python_and_its_advice_works(tmp_path):
    import tensorflow as tf

    for number in range(12):
        pixels = tf.constant(RNG.integers(0, 256, (9, 10, 3)), "uint8")
        tf.io.write_file(str(tmp_path / f"{number}.png"), tf.io.encode_png(pixels))
    model = tiny_models.conv_bn_relu()
    for path in (str(tmp_path), tmp_path):
        with pytest.raises(
            DataError,
            match=r"keras\.utils\.image_dataset_from_directory\(path, labels=None, image_size=…\)",
        ):
            kerasnorm.swap_norms(model, "layer", path)
    data = keras.utils.image_dataset_from_directory(
        path, labels=None, image_size=(8, 8), verbose=False
    )
    swap = kerasnorm.swap_norms(model, "layer", data)
    assert [site.verdict for site in swap.report.sites] == ["calibrated"]


def test_memory_does_not_grow_with_a_memory_mapped_array(tmp_path):
    """Of 200,000 images in a file, as many are read as are used."""
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype="float32", shape=(200_000, 8, 8, 1))
    program = """
        import resource, sys
        import keras, numpy as np
        import kerasnorm
        from kerasnorm.distillation.reconstruct import Reconstruction

        Reconstruction.run = lambda *_: False

        class Counted(np.memmap):
            read = 0
            def __getitem__(self, rows):
                found = super().__getitem__(rows)
                if len(self) == 200_000:
                    Counted.read += len(found)
                return found

        layers = [keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization()]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        data = np.load(sys.argv[1], mmap_mode="r").view(Counted)
        assert isinstance(data, Counted)
        kerasnorm.swap_norms(model, "cosine", np.random.normal(size=(2048, 8, 8, 1)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = kerasnorm.swap_norms(model, "cosine", data).report
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(Counted.read, after - before)
        print(report.notes[0])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts, note = done.stdout.splitlines()[-2:]
    read, kilobytes = map(int, counts.split())
    assert read == MAX_SAMPLES
    assert kilobytes < 150_000  # all images together take 300,000
    assert note.startswith("2,048 of 200,000 samples were used")
