"""Atomic writing of files and folders.

Readers of a file find its complete old or its complete new content, even after a crash.
A folder is complete too, but does not exist for a moment while it is replaced. The name
of a temporary file contains the process that owns it, so that the next writer removes
what a killed process left, but nothing that a running process is still writing.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from keras_resnet.support.errors import InputError, first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

StrPath = str | os.PathLike[str]


class WriteError(OSError):
    """Raised when a file cannot be written."""

    def __str__(self) -> str:
        return f"Could not write {self.filename}: {self.strerror}"


@contextlib.contextmanager
def replace_atomically(
    path: StrPath, suffix: str = "", library_error: type[Exception] = RuntimeError
) -> Iterator[str]:
    """Yields the path of a temporary file that replaces `path` when the context ends.

    The temporary path is unique, so two processes can write the same file at once.
    The content is flushed to the disk before the file is renamed.

    Args:
        suffix: Suffix that the temporary path must have, such as the `".keras"` that
            Keras requires.
        library_error: Error that the writing library raises instead of `OSError`, such
            as h5py's `RuntimeError` on a full disk.

    Yields:
        Temporary path in the folder of `path`. No file exists there yet.

    Raises:
        OSError: If the file cannot be written. An existing `path` is left unchanged.
    """
    path = os.fspath(path)
    if os.path.lexists(path) and not os.path.isfile(path):
        raise WriteError(errno.EEXIST, "It exists and is no regular file", path)
    temporary_path = _make_temporary_path(path) + suffix
    try:
        yield temporary_path
        flush_to_disk(temporary_path)
        os.replace(temporary_path, path)
        flush_to_disk(os.path.dirname(path) or ".")
    except (OSError, library_error) as error:
        code = getattr(error, "errno", None) or errno.EIO
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WriteError(code, reason, path) from error
    finally:
        with contextlib.suppress(OSError):  # The rename may have moved the file.
            os.remove(temporary_path)


@contextlib.contextmanager
def replace_folder_atomically(path: StrPath) -> Iterator[str]:
    """Yields an empty temporary folder that replaces `path` when the context ends.

    Args:
        path: Folder to write. An existing folder is replaced. If `path` is a symbolic
            link, the folder that it names is replaced.

    Yields:
        Path of the temporary folder, which is next to `path`.

    Raises:
        InputError: If the temporary folder cannot be created.
    """
    received_path, path = path, os.path.realpath(path)
    temporary_path = _make_temporary_path(path)
    try:
        if os.path.lexists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, "It is a file", path)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        os.mkdir(temporary_path)
    except OSError as error:
        raise InputError(
            "The parent of the output folder must be writable. Received: "
            f"{os.fspath(received_path)!r} ({error.strerror})"
        ) from None
    try:
        yield temporary_path
        for folder, _, names in os.walk(temporary_path):
            for name in (*names, ""):
                flush_to_disk(os.path.join(folder, name))
        # Another process may write the same folder. The last writer's folder stays.
        for remaining_tries in reversed(range(10)):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, f"{temporary_path}.old{remaining_tries}")
            try:
                os.rename(temporary_path, path)
                break
            except OSError as error:
                is_taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
                if not (is_taken and remaining_tries):
                    raise
        flush_to_disk(os.path.dirname(path))
    finally:
        for leftover in glob.glob(f"{glob.escape(temporary_path)}*"):
            _discard(leftover, path)


def write_file(path: StrPath, content: str | bytes) -> None:
    """Writes a file atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with replace_atomically(path) as temporary_path, open(temporary_path, "xb") as file:
        file.write(content)


def write_json(path: StrPath, value: Any) -> None:
    """Writes a value atomically, as indented JSON.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a number is infinite or NaN, which JSON cannot represent.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, f"{text}\n")


def to_png(figure: "Figure") -> bytes:
    """Returns a matplotlib figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def read_file(path: StrPath, max_bytes: int = 2**24) -> bytes:
    """Reads a file that comes from outside.

    Raises:
        InputError: If the path is not a regular file, such as a pipe that would block,
            or if the file has more than `max_bytes` bytes.
        OSError: If the file does not exist or cannot be read.
    """
    try:
        is_file, size = os.path.isfile(path), os.path.getsize(path)
    except ValueError as error:  # The path has a character that no path can have.
        raise InputError(f"{os.fspath(path)!r} is no path: {error}") from None
    if not is_file or size > max_bytes:
        problem = f"a file of {size:,} bytes" if is_file else "no file"
        raise InputError(
            f"A regular file of at most {max_bytes:,} bytes is accepted. "
            f"Received: {os.fspath(path)!r}, which is {problem}"
        )
    with open(path, "rb") as file:
        return file.read(max_bytes)


def read_json(path: StrPath) -> Any:
    """Reads a JSON file that comes from outside.

    Raises:
        InputError: If the file is not regular, too large, or no JSON.
        OSError: If the file does not exist or cannot be read.
    """
    content = read_file(path, max_bytes=2**22)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{os.fspath(path)} is damaged or no JSON: {first_line(error)}"
        ) from None


def flush_to_disk(path: StrPath) -> None:
    """Waits until a file's content, or a folder's list of files, is on the disk.

    Raises:
        OSError: If the content of the file cannot be written to the disk.
    """
    is_folder = os.path.isdir(path)
    # Errors are ignored for folders: Windows and some network drives cannot flush them.
    with contextlib.suppress(OSError) if is_folder else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def keras_home() -> str:
    """Returns the folder of Keras's caches: `$KERAS_HOME`, or `~/.keras`."""
    return os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")


def remove_partial_files(folder: StrPath, names: Iterable[str]) -> None:
    """Removes the temporary files that a killed process left in a folder.

    `names` are the names of files that no process is writing now.
    """
    for name in names:
        stem, suffix = os.path.splitext(name)
        # The last two patterns match the temporary files that version 0.1.0 wrote.
        for pattern in (f".{name}.*.part*", f"{name}.part", f"{stem}.part{suffix}"):
            for path in pathlib.Path(folder).glob(pattern):
                path.unlink(missing_ok=True)


def _make_temporary_path(path: str) -> str:
    """Returns a new temporary path beside `path`. Removes leftovers of killed writers.

    If a process was killed after it had moved a folder aside, the folder is moved back.
    """
    folder, name = os.path.split(path)
    # The name is cut because file systems limit its length, usually to 255 bytes.
    if len(os.fsencode(name)) > 120:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = os.fsencode(name)[:100].decode(errors="ignore") + digest
    prefix = os.path.join(folder, f".{name}.")
    for leftover in glob.glob(f"{glob.escape(prefix)}*"):
        match = _TEMPORARY_NAME.fullmatch(leftover.removeprefix(prefix))
        if match and _is_abandoned(*match.groups()):
            _discard(leftover, path)
    number = secrets.token_hex(4)
    _own_numbers.add(number)
    return f"{prefix}{_find_host_id()}-{os.getpid()}-{number}.part"


# The part of a temporary name after the name of the target: host, process and number.
_TEMPORARY_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.part.*")

_own_numbers: set[str] = set()  # Numbers in the temporary names of this process.


def _discard(leftover: str, path: str) -> None:
    """Removes a leftover of a write to `path`, or moves a folder back to `path`."""
    is_old_folder = leftover.rpartition(".part")[2].startswith(".old")
    with contextlib.suppress(OSError):
        if is_old_folder and not os.path.lexists(path):
            os.rename(leftover, path)
        elif os.path.isdir(leftover):
            shutil.rmtree(leftover)
        else:
            os.remove(leftover)


@functools.cache
def _find_host_id() -> str:
    """Returns 8 hex digits that differ between hosts and between containers."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only. A container has its own processes.
        names.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(repr(names).encode()).hexdigest()[:8]


def _is_abandoned(host_id: str, process_id: str, number: str) -> bool:
    """Returns whether a process of this host no longer runs."""
    if host_id != _find_host_id() or os.name != "posix":
        return False
    # In a container that was started again, processes often get the same ids again.
    if process_id == str(os.getpid()):
        return number not in _own_numbers
    try:
        os.kill(int(process_id), 0)
    except (OSError, OverflowError) as error:  # PermissionError: of another user.
        return isinstance(error, (ProcessLookupError, OverflowError))
    return False
