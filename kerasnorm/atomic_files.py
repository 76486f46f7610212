"""`replace_whole`: write a file, or several, in full or leave what was there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from kerasnorm.errors import KerasNormError

# Temporary files that this process is writing. One of them needs no other beside it.
_being_written: set[Path] = set()


@contextlib.contextmanager
def replace_whole(
    path: str | os.PathLike[str], *, error: type[KerasNormError] = KerasNormError
) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once it is completely written.

    Whatever interrupts the block, an exception, Ctrl-C or a kill, a file that was at `path`
    stays there byte for byte. Two writers of one path do not mix: the last to finish wins.
    A symbolic link is followed, and an existing file keeps its permissions.

    Args:
        path: The file to write. Its folder must exist. One that such a block has yielded is
            yielded once more.
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
    if Path(path) in _being_written:  # what goes wrong is said of the file it is for
        yield Path(path)
        return
    with replace_together() as replace, replace(path, error) as temporary:
        yield temporary


@contextlib.contextmanager
def replace_together() -> Iterator[Callable[..., contextlib.AbstractContextManager[Path]]]:
    """`replace_whole` for several files: none takes its place before all are on the disk.

    Yields:
        A function of a path and the class of exceptions, a context manager as `replace_whole`.

    Raises:
        KerasNormError: As `replace_whole`.

    Example:

    >>> with replace_together() as replace:
    ...     for name in ("question.txt", "answer.txt"):
    ...         with replace(name) as temporary:
    ...             temporary.write_text("42")
    2
    2
    """
    written: list[tuple[Path, Path, type[KerasNormError]]] = []

    @contextlib.contextmanager
    def replace(
        path: str | os.PathLike[str], error: type[KerasNormError] = KerasNormError
    ) -> Iterator[Path]:
        target = Path(os.path.realpath(path))
        permissions = _permissions_to_keep(target, error)
        temporary = _create_beside(target, permissions, error)
        temporaries.callback(temporary.unlink, missing_ok=True)
        _being_written.add(temporary)
        temporaries.callback(_being_written.discard, temporary)
        with _plainly(target, error):
            if permissions is not None:  # a private file is not public meanwhile
                temporary.chmod(permissions | stat.S_IRUSR | stat.S_IWUSR)
            yield temporary
            _flush_to_disk(temporary)
            if permissions is not None:
                temporary.chmod(permissions)
        written.append((temporary, target, error))

    with contextlib.ExitStack() as temporaries:
        yield replace
        # Nothing in between that takes time or may fail for want of room.
        for temporary, target, error in written:
            with _plainly(target, error, hint=None):  # another may be in its place already
                os.replace(temporary, target)
    for folder in {target.parent for _, target, _ in written}:
        flush_folder(folder)


@contextlib.contextmanager
def _plainly(
    target: Path,
    error: type[KerasNormError],
    hint: str | None = "Whatever was there before is unchanged.",
) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as failure:
        # HDF5, which raises both, says it among addresses and times.
        said = re.search("error message = '(.*?)'", str(failure))
        if not said and not isinstance(failure, OSError):
            raise
        why = said[1] if said else getattr(failure, "strerror", None) or failure
        raise error(f"'{target}' could not be written: {why}.", hint=hint) from failure


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


def _create_beside(target: Path, permissions: int | None, error: type[KerasNormError]) -> Path:
    """A new empty file of a name nobody else has.

    With the permissions a new file gets here, or private where there are some to keep.
    """
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        # Not tempfile.mkstemp, which ignores the umask and makes every file private.
        mode = 0o666 if permissions is None else 0o600
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    except OSError as failure:
        raise error(
            f"The folder '{target.parent}' cannot be written to: {failure.strerror or failure}.",
            hint="Choose another place for the file.",
        ) from failure
    return temporary


def _flush_to_disk(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Makes a rename in it durable, where the system can."""
    # Not every system can open a folder, and the file is whole without it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
