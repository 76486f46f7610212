"""Every output is written whole or not at all: by runs that are killed, or find no room."""

from __future__ import annotations

import contextlib
import os
import random
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from rich.console import Console

import kerasnorm
from kerasnorm import atomic_files
from kerasnorm.atomic_files import replace_together, replace_whole
from kerasnorm.cli import main
from kerasnorm.errors import KerasNormError
from kerasnorm.onnx import export, frozen_graph

TOOLS = Path(__file__).parents[1] / "tools"
# Of writing, beside the ordinary one: weights in a second file; Keras short of memory.
WAYS = ("apart", "scarce")
OLD = "what was there before"


@pytest.fixture(scope="module")
def tools():
    """The two tools, and what they share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # as the command does
        patch.syspath_prepend(TOOLS)
        import fill_disk
        import kill_swap
        import swap_runs

        yield SimpleNamespace(kill=kill_swap, disk=fill_disk, runs=swap_runs)


@pytest.fixture(scope="module")
def sources(tools, tmp_path_factory):
    return tools.runs.Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(
    scope="module", params=["one", *(pytest.param(w, marks=pytest.mark.slow) for w in WAYS)]
)
def folder(request, tools, sources, tmp_path_factory):
    """A folder with the outputs of a run."""
    way = tools.runs.Way(apart=request.param == "apart", scarce=request.param == "scarce")
    return tools.runs.Folder(tmp_path_factory.mktemp("outputs"), sources, way)


def test_a_kill_at_any_time_leaves_whole_files(tools, folder):
    draw = random.Random(0)
    for _ in range(2):
        found = tools.kill.kill(folder, draw, folder.way, folder.duration)
        assert found.broken == []
        for name in found.left:
            (folder.path / name).unlink()


@pytest.mark.parametrize("name", ["out.keras", "out.json", "out.onnx"])
def test_no_room_for_one_output_leaves_all_of_them(name, tools, folder, tmp_path):
    folder.forget()
    assert tools.disk.limited(folder, name, tmp_path / "said") == (name, [])


def test_two_runs_at_once_do_not_mix(tools, sources, folder):
    runs = [tools.runs.start(model, folder.path, folder.way) for model in sources.paths]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    outputs = tools.runs.OUTPUTS.values()
    left = {path.name for path in folder.path.iterdir()} - {*outputs}
    assert all(name.startswith("weights-") for name in left)
    for name in outputs:
        assert any(is_whole(sources, number, folder.path / name) for number in range(2))


def is_whole(sources, number, path) -> bool:
    with contextlib.suppress(AssertionError):  # the answers are another model's
        sources.check(number, path)
        return True
    return False


@pytest.mark.slow
def test_a_disk_that_is_full_and_thirty_kills(tools, tmp_path):
    console = Console(quiet=True)
    assert tools.kill.kills(tmp_path, 30, 1, console)
    assert tools.disk.full_disk(tmp_path, console)


@pytest.mark.parametrize(
    ("name", "text"), [("out.keras", "zip"), ("out.json", "line"), ("out.onnx", "pars")]
)
def test_the_tools_see_half_a_file_and_another_model(name, text, sources, folder, tmp_path):
    whole = (folder.path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=text):
        sources.check(0, tmp_path / name)
    if name != "out.json":  # which tells nothing of the weights
        assert sum(is_whole(sources, number, folder.path / name) for number in range(2)) == 1


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


@pytest.fixture
def old(tmp_path):
    """Three outputs of a former run."""
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "out" / name for name in ("out.keras", "out.onnx", "out.json")]
    for path in paths:
        path.write_text(OLD)
    return paths


def swap(model, outputs) -> int:
    options = dict(zip(("output", "onnx", "report"), outputs, strict=True))
    arguments = [text for name, path in options.items() for text in (f"--{name}", str(path))]
    return main.main(["swap", str(model), "--to", "weight", "--force", "--quiet", *arguments])


def test_a_link_to_an_output_is_followed_and_stays(model, old, tmp_path):
    links = [tmp_path / path.name for path in old]
    for link, path in zip(links, old, strict=True):
        link.symlink_to(path)
    assert swap(model, links) == 0
    assert all(link.is_symlink() for link in links)
    assert OLD.encode() not in [path.read_bytes() for path in old]
    assert len(os.listdir(old[0].parent)) == 3


def test_outputs_keep_their_permissions(model, old):
    modes = (0o600, 0o640, 0o444 | stat.S_IWUSR)
    for path, mode in zip(old, modes, strict=True):
        path.chmod(mode)
    assert swap(model, old) == 0
    assert tuple(stat.S_IMODE(path.stat().st_mode) for path in old) == modes


@pytest.mark.parametrize(("mode", "meanwhile"), [(0o600, 0o600), (0o220, 0o620)])
def test_what_is_private_is_not_public_while_it_is_written(mode, meanwhile, old):
    old[0].chmod(mode)
    with replace_whole(old[0]) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == meanwhile
    assert stat.S_IMODE(old[0].stat().st_mode) == mode


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_output_that_cannot_be_made_leaves_the_others(number, model, old, capsys, monkeypatch):
    create = atomic_files._create_beside

    def refuse(target, *rest):
        if target == old[number]:
            raise KerasNormError("There is no room.")
        return create(target, *rest)

    monkeypatch.setattr(atomic_files, "_create_beside", refuse)
    assert swap(model, old) == 1
    assert capsys.readouterr().err == "kerasnorm: There is no room.\n"
    assert [path.read_text() for path in old] == [OLD] * 3
    assert len(os.listdir(old[0].parent)) == 3


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_fails_when_it_is_flushed_leaves_all(number, model, old, capsys, monkeypatch):
    flushed = []

    def fail(descriptor):
        flushed.append(descriptor)
        if len(flushed) > number:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    done = swap(model, old)
    if len(flushed) > 3:  # of the folder, once all is in place
        assert done == 0
        return
    assert done == 1
    assert "could not be written: Input/output error." in capsys.readouterr().err
    assert [path.read_text() for path in old] == [OLD] * 3
    assert len(os.listdir(old[0].parent)) == 3


def test_an_error_names_the_file_that_was_asked_for(model, old, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_write", full)
    assert swap(model, old) == 1
    assert f"'{old[1]}' could not be written: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_what_hdf5_says_is_said_plainly(kind, old):
    def write():
        with replace_whole(old[0]):
            raise kind(
                "Can't write data (file write failed: time = Thu Jan  1 00:00:00 1970\n, errno = "
                "28, error message = 'No space left on device', buf = 0x55fbb55eb073, offset = 0)"
            )

    with pytest.raises(KerasNormError, match=r"out.keras' could not be written: No space left on"):
        write()


def test_together_means_all_or_none(old):
    with contextlib.suppress(RuntimeError), replace_together() as replace:
        with replace(old[0]) as temporary:
            temporary.write_text("new")
        assert old[0].read_text() == OLD
        raise RuntimeError
    assert old[0].read_text() == OLD
    assert len(os.listdir(old[0].parent)) == 3


@pytest.fixture
def small_files(monkeypatch):
    """As if one file held no more than 1000 bytes."""
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    monkeypatch.setattr(export, "_LARGE_MODEL", 1000)
    monkeypatch.setattr(frozen_graph, "_LARGE_WEIGHT", 500)


def weights_beside(path):
    [weights] = path.parent.glob("weights-*")
    return weights


def test_weights_of_a_private_model_are_private(small_files, old):
    old[1].chmod(0o600)
    kerasnorm.export_onnx(tiny_models.residual(), old[1])
    assert stat.S_IMODE(weights_beside(old[1]).stat().st_mode) == 0o600


def test_the_same_weights_stay_where_a_link_leads_to(small_files, old, tmp_path):
    model = tiny_models.residual()
    kerasnorm.export_onnx(model, old[1])
    link, elsewhere = weights_beside(old[1]), tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    elsewhere.chmod(0o640)
    kerasnorm.export_onnx(model, old[1])
    assert link.is_symlink()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o640


def test_a_model_that_cannot_be_written_leaves_no_weights(small_files, old, monkeypatch):
    def full(path, data):
        if written.append(path) or len(written) == 2:
            raise OSError(28, "No space left on device")
        return write(path, data)

    written: list[Path] = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(kerasnorm.ExportError, match="No space left"):
        kerasnorm.export_onnx(tiny_models.residual(), old[1])
    assert len(os.listdir(old[0].parent)) == 3
