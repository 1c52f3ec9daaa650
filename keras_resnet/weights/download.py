"""Published weights, fetched once and verified always."""

import hashlib
import os
import sys
import tempfile
import urllib.request
from http.client import HTTPException

from keras_resnet.support import InputError


def cache_folder():
    """Keras's cache of models: `$KERAS_HOME/models`, or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME") or os.path.join(
        os.path.expanduser("~"), ".keras"
    )
    return os.path.join(home, "models")


def fetch_weights(entry):
    """Returns the path of published weights, downloaded unless they lie there.

    The hash is verified each time. The file appears whole or not at all; two
    processes at once each download it, and leave the same file.

    Args:
        entry: a `PublishedWeights`.

    Raises:
        InputError: it cannot be downloaded, or is another file than published.
        OSError: it cannot be written.
    """
    if os.path.exists(entry.path):
        if has_digest(entry.path, entry.algorithm, entry.digest):
            return entry.path
        print(
            f"{entry.path} is not the published file or is damaged; downloading it anew",
            file=sys.stderr,
        )
    download_file(entry.address, entry.path, entry.algorithm, entry.digest)
    return entry.path


def has_digest(path, algorithm, digest):
    """Whether a file has a hash, or a hash that begins so."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digest)


def download_file(address, path, algorithm, digest):
    """Downloads a file and verifies it before it appears.

    Args:
        address: of the file.
        path: where to put it.
        algorithm: of the hash, such as `"sha256"`.
        digest: in hex digits; at least the first 8.

    Raises:
        InputError: it cannot be downloaded, or has another hash.
        OSError: it cannot be written.
    """
    by_hand = f"Where there is no network, put the file at {path}"
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        handle, beside = tempfile.mkstemp(
            prefix=f".{os.path.basename(path)}.", suffix=".part", dir=folder
        )
    except OSError as error:
        raise OSError(f"Could not write to {folder}: {error.strerror}") from error
    try:
        # Without a buffer, which would be written at the end, on a disk that is full.
        with os.fdopen(handle, "wb", buffering=0) as file:
            try:
                answer = urllib.request.urlopen(address, timeout=30)
            except (OSError, ValueError, HTTPException) as error:
                raise InputError(
                    f"Could not download {address} ({_reason(error)}). {by_hand}"
                ) from None
            with answer:
                size = answer.length or 0
                received = _copy(answer, file, address, size, by_hand)
        if size and received != size:
            raise InputError(
                f"The download of {address} ended after {received:,} of {size:,} bytes; "
                "try again"
            )
        if not has_digest(beside, algorithm, digest):
            raise InputError(
                f"{address} is not the published file: its {algorithm} does not begin "
                f"with {digest}, which the publisher states. Nothing was kept"
            )
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def _copy(answer, file, address, size, by_hand):
    """Copies a download, with its progress on standard error."""
    name = os.path.basename(address)
    total = f" of {size / 2**20:.1f}" if size else ""
    live = sys.stderr.isatty()
    if not live:
        print(f"Downloading {address}{total and total[3:] + ' MiB'}", file=sys.stderr)
    received = 0
    while True:
        try:
            block = answer.read(2**18)
        except (OSError, HTTPException) as error:
            raise InputError(
                f"The download of {address} broke off ({_reason(error)}). {by_hand}"
            ) from None
        if not block:
            break
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise OSError(
                f"Could not write {name} after {received / 2**20:.1f} MiB: "
                f"{error.strerror}. Nothing was kept"
            ) from error
        received += len(block)
        if live:
            done = f"{received / 2**20:8.1f}{total} MiB"
            print(f"\r{name} {done}", end="", file=sys.stderr, flush=True)
    if live:
        print(file=sys.stderr)
    return received


def _reason(error):
    text = str(getattr(error, "reason", "") or error) or type(error).__name__
    return " ".join(text.split())
