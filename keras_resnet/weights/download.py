"""Published weights, fetched once and verified always."""

import hashlib
import os
import sys
import urllib.request
from http.client import HTTPException, HTTPResponse

from keras_resnet.support import InputError, progress_bar, replace_when_whole
from keras_resnet.weights.registry import PublishedWeights


def fetch_weights(entry: PublishedWeights) -> str:
    """Returns the path of published weights; see `fetch_file`."""
    return fetch_file(entry.address, entry.path, entry.algorithm, entry.digest)


def has_digest(path: str, algorithm: str, digest: str) -> bool:
    """Whether a file has a hash, or a hash that begins so."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digest)


def fetch_file(address: str, path: str, algorithm: str, digest: str) -> str:
    """Downloads a file unless it lies there already.

    The hash is verified each time. The file appears whole or not at all; two
    processes at once each download it, and leave the same file.

    Args:
        address: Address of the file.
        path: Where to put it.
        algorithm: Algorithm of the hash, such as `"sha256"`.
        digest: Hash in hex digits; at least the first 8.

    Returns:
        `path`.

    Raises:
        InputError: It cannot be downloaded, or has another hash.
        OSError: It cannot be written.
    """
    if os.path.exists(path):
        if has_digest(path, algorithm, digest):
            return path
        print(
            f"{path} is not the published file or is damaged; downloading it anew",
            file=sys.stderr,
        )
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(f"Could not write to {folder}: {error.strerror}") from error
    received = 0
    try:
        with replace_when_whole(path) as beside:
            # The file is opened first: a folder that is read-only costs no download.
            with open(beside, "xb") as file, _open(address, path) as answer:
                size = getattr(answer, "length", None) or 0
                with progress_bar(name, size, unit="bytes") as advance:
                    while block := _read(answer, address, path):
                        file.write(block)
                        received += len(block)
                        advance(len(block))
            if size and received != size:
                raise InputError(
                    f"The download of {address} ended after {received:,} of {size:,} "
                    "bytes; try again"
                )
            if not has_digest(beside, algorithm, digest):
                raise InputError(
                    f"{address} is not the published file: its {algorithm} does not "
                    f"begin with {digest}, which the publisher states. Nothing was kept"
                )
    except OSError as error:
        raise OSError(
            f"Could not write {name} to {folder} after {received / 2**20:.1f} MiB: "
            f"{error.strerror or error}. Nothing was kept"
        ) from error
    return path


def _open(address: str, path: str) -> HTTPResponse:
    """Begins a download, and says so on standard error if no bar will."""
    try:
        answer: HTTPResponse = urllib.request.urlopen(address, timeout=30)
    except (OSError, ValueError, HTTPException) as error:
        raise _failure(f"Could not download {address}", error, path) from None
    size = getattr(answer, "length", None)  # A file:// address has none.
    if not (size and sys.stderr.isatty()):
        length = f" {size / 2**20:.1f} MiB" if size else ""
        print(f"Downloading {address}{length}", file=sys.stderr)
    return answer


def _read(answer: HTTPResponse, address: str, path: str) -> bytes:
    """Returns the next block of a download; empty at its end."""
    try:
        return answer.read(2**18)
    except (OSError, HTTPException) as error:
        raise _failure(f"The download of {address} broke off", error, path) from None


def _failure(text: str, error: Exception, path: str) -> InputError:
    reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    return InputError(
        f"{text} ({' '.join(reason.split())}). "
        f"Where there is no network, put the file at {path}"
    )
