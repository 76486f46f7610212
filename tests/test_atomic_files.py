"""`replace_whole`: the new file in full, or the old one untouched."""

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest

from kerasnorm.atomic_files import replace_whole
from kerasnorm.errors import ExportError, KerasNormError

OLD = b"what was there before"


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(OLD)
    return path


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_writes_a_new_file_with_the_permissions_of_any_new_file(tmp_path):
    path = tmp_path / "new.txt"
    with replace_whole(path) as temporary:
        temporary.write_text("42")
        assert not path.exists()
    ordinary = tmp_path / "ordinary.txt"
    ordinary.write_text("")
    assert path.read_text() == "42"
    assert permissions(path) == permissions(ordinary)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.txt", "ordinary.txt"]


def test_the_temporary_file_is_beside_the_target_with_its_suffix(tmp_path):
    with replace_whole(tmp_path / "model.keras") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".keras"


def test_keeps_the_permissions_of_an_existing_file(old):
    old.chmod(0o640)
    with replace_whole(old) as temporary:
        temporary.unlink()  # as writers do that create their own file
        temporary.write_bytes(b"new")
    assert old.read_bytes() == b"new"
    assert permissions(old) == 0o640


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("a" * 250 + ".onnx")
    with replace_whole(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(old, interruption):
    def write():
        with replace_whole(old) as temporary:
            temporary.write_bytes(b"half of the n")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert old.read_bytes() == OLD
    assert list(old.parent.iterdir()) == [old]


def test_a_full_disk_is_one_plain_sentence(old):
    with (
        pytest.raises(
            ExportError, match=r"'.*model.onnx' could not be written: No space left on device\."
        ),
        replace_whole(old, error=ExportError),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert old.read_bytes() == OLD
    assert list(old.parent.iterdir()) == [old]


def test_a_link_stays_a_link_and_its_target_is_replaced(old, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    link = folder / "link.onnx"
    link.symlink_to(old)
    with replace_whole(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert old.read_bytes() == b"new"
    assert list(folder.iterdir()) == [link]


def test_a_link_to_a_file_that_is_not_there_yet_creates_it(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with replace_whole(link) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "target").read_bytes() == b"new"


def test_two_writers_do_not_mix_and_the_last_wins(old):
    with replace_whole(old) as first, replace_whole(old) as second:
        assert first != second
        first.write_bytes(b"first, which finishes last")
        second.write_bytes(b"second")
    assert old.read_bytes() == b"first, which finishes last"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing/model.onnx", r"The folder '.*missing' does not exist\. Create it, or choose"),
        ("folder", r"'.*folder' is a folder\. Give the name of a file in it\."),
        ("model.onnx/inside.onnx", r"The folder '.*model.onnx' does not exist\."),
        ("pipe", r"'.*pipe' is not a regular file\. Give another name\."),
    ],
)
def test_refuses_what_cannot_be_a_file(old, name, text):
    (old.parent / "folder").mkdir()
    os.mkfifo(old.parent / "pipe")
    before = sorted(old.parent.iterdir())
    with pytest.raises(KerasNormError, match=text), replace_whole(old.parent / name):
        pytest.fail("the block must not be entered")
    assert sorted(old.parent.iterdir()) == before


def test_refuses_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Not by chmod: the superuser may write anywhere.
    monkeypatch.setattr(os, "open", refuse)
    text = r"The folder '.*' cannot be written to: Permission denied\. Choose another place"
    with pytest.raises(KerasNormError, match=text), replace_whole(tmp_path / "x"):
        pytest.fail("the block must not be entered")


def test_refuses_a_read_only_file(old, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    text = r"'.*model.onnx' is read-only\."
    with pytest.raises(KerasNormError, match=text), replace_whole(old):
        pytest.fail("the block must not be entered")


def test_a_kill_during_writing_leaves_the_old_file(old):
    program = f"""
        import sys, time
        from kerasnorm.atomic_files import replace_whole
        with replace_whole({str(old)!r}) as temporary:
            temporary.write_bytes(b"half of the n")
            print("writing", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert old.read_bytes() == OLD
