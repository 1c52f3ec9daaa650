"""Files that appear whole or not at all."""

import contextlib
import errno
import io
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from keras_resnet.support.errors import InputError, first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Path = str | os.PathLike[str]


class WriteError(OSError):
    """A file could not be written."""

    def __str__(self) -> str:
        return f"Could not write {self.filename}: {self.strerror}"


@contextlib.contextmanager
def replace_when_whole(path: Path, ending: str = "") -> Iterator[str]:
    """Gives a temporary name beside a file, and renames it when it is whole.

    The name is unique, so that two processes which write the same file both leave a
    whole one. The content is on the disk before the name is: a crash of the machine
    leaves the old file or the new one.

    Args:
        path: The file to write.
        ending: Ending of the temporary name, for libraries that look at it.

    Yields:
        The temporary name. Nothing exists there yet.

    Raises:
        OSError: The file could not be written. What was there before still is.
    """
    path = os.fspath(path)
    beside = _partial_name(path) + ending
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(os.path.dirname(path) or ".")
    except InputError:
        raise
    except Exception as error:  # Each library raises kinds of its own.
        code = getattr(error, "errno", None) or errno.EIO
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WriteError(code, reason, path) from error
    finally:
        with contextlib.suppress(OSError):  # Nothing may be there to remove.
            os.remove(beside)


@contextlib.contextmanager
def replace_folder_when_whole(path: Path) -> Iterator[str]:
    """Gives a new folder beside another, and puts it in its place when it is whole.

    Args:
        path: The folder to write. An earlier one is replaced.

    Yields:
        The path of the new folder, which is empty.

    Raises:
        InputError: No folder can be made there.
    """
    path = os.path.normpath(path)
    beside = _partial_name(path)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        os.mkdir(beside)
    except OSError as error:
        raise InputError(
            f"output must be in a folder that can be written. Received: {path!r} "
            f"({error.strerror})"
        ) from None
    old = f"{beside}.old"
    try:
        yield beside
        for folder, _, names in os.walk(beside):
            for name in (*names, ""):
                _flush(os.path.join(folder, name))
        if os.path.lexists(path):
            os.rename(path, old)
        try:
            os.rename(beside, path)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, path)
            raise
        _flush(os.path.dirname(path) or ".")
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: It could not be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with replace_when_whole(path) as beside, open(beside, "xb") as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON.

    Raises:
        OSError: It could not be written.
        ValueError: A number is infinite or NaN, which JSON cannot hold.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, f"{text}\n")


def to_png(figure: "Figure") -> bytes:
    """Returns a matplotlib figure as the bytes of a PNG."""
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


def keras_home() -> str:
    """Returns Keras's folder: `$KERAS_HOME`, or `~/.keras`."""
    return os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")


def remove_partial_files(folder: Path) -> None:
    """Removes what a killed process left half written in a folder.

    Args:
        folder: A folder that nothing else writes to.
    """
    # Without the random part: version 0.1.0.
    for pattern in (".*.part*", "*.part", "*.part.keras"):
        for path in pathlib.Path(folder).glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)


def _partial_name(path: str) -> str:
    folder, name = os.path.split(path)
    # Cut, so that the longest names that a file system takes can be written.
    return os.path.join(folder, f".{name[:80]}.{secrets.token_hex(4)}.part")


def _flush(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    is_folder = os.path.isdir(path)
    # Windows cannot open folders, and some network file systems cannot flush them.
    with contextlib.suppress(OSError) if is_folder else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
