"""`replace_whole`: write a file in full or leave the one that was there."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from kerasnorm.errors import KerasNormError


@contextlib.contextmanager
def replace_whole(
    path: str | os.PathLike[str], *, error: type[KerasNormError] = KerasNormError
) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once it is completely written.

    Whatever interrupts the block, an exception, Ctrl-C or a kill, a file that was at `path`
    stays there byte for byte. Two writers of one path do not mix: the last to finish wins.
    A symbolic link is followed, and an existing file keeps its permissions.

    Args:
        path: The file to write. Its folder must exist.
        error: The class of the exceptions raised here.

    Yields:
        Path of an empty file in the same folder and with the same suffix as `path`.

    Raises:
        KerasNormError: (or `error`) If the folder does not exist or cannot be written to, if
            `path` is a folder, a device or a read-only file, or if writing fails (disk full).

    Example:

    >>> with replace_whole("answer.txt") as temporary:
    ...     temporary.write_text("42")
    2
    """
    target = Path(os.path.realpath(path))
    permissions = _permissions_to_keep(target, error)
    temporary = _create_beside(target, error)
    try:
        try:
            yield temporary
            _flush_to_disk(temporary)
            if permissions is not None:
                temporary.chmod(permissions)
            os.replace(temporary, target)
        except OSError as failure:
            raise error(
                f"'{target}' could not be written: {failure.strerror or failure}.",
                hint="Whatever was there before is unchanged.",
            ) from failure
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(target.parent)


def _permissions_to_keep(target: Path, error: type[KerasNormError]) -> int | None:
    """The permissions of the file that is there, None where there is none."""
    if target.is_dir():
        raise error(f"'{target}' is a folder.", hint="Give the name of a file in it.")
    if not target.parent.is_dir():
        raise error(
            f"The folder '{target.parent}' does not exist.",
            hint="Create it, or choose another place for the file.",
        )
    if not target.exists():
        return None
    if not target.is_file():
        # Renaming onto /dev/null or a pipe would replace the device itself.
        raise error(f"'{target}' is not a regular file.", hint="Give another name.")
    if not os.access(target, os.W_OK):
        raise error(f"'{target}' is read-only.", hint="Give another name, or make it writable.")
    return stat.S_IMODE(target.stat().st_mode)


def _create_beside(target: Path, error: type[KerasNormError]) -> Path:
    """A new empty file of a name nobody else has, with the permissions a new file gets here."""
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        # Not tempfile.mkstemp, which ignores the umask and makes every file private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as failure:
        raise error(
            f"The folder '{target.parent}' cannot be written to: {failure.strerror or failure}.",
            hint="Choose another place for the file.",
        ) from failure
    return temporary


def _flush_to_disk(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # Makes the rename itself durable. Not every system can open a folder, and the file is whole
    # without it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
