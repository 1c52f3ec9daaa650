"""Downloads of published weights, which are verified by a hash."""

import hashlib
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError

from keras_resnet.support import InputError, progress_bar, replace_atomically
from keras_resnet.weights.registry import PublishedWeights

_MAX_BYTES = 2**32  # The largest published file has 0.5 GB.
_MIN_BYTES, _SECONDS = 2**18, 60  # A slower download is stopped.


def fetch_published_weights(row: PublishedWeights) -> str:
    """Downloads the file of published weights if necessary, and returns its path."""
    return fetch_file(row.address, row.path, row.algorithm, row.digest)


def has_digest(path: str, algorithm: str, digest: str) -> bool:
    """Returns whether the hash of a file begins with the hex digits `digest`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digest)


def fetch_file(url: str, path: str, algorithm: str, digest: str) -> str:
    """Downloads a file, unless it exists with the right hash, and returns `path`.

    The hash of the download is verified, too. The file is written atomically, so two
    processes can download it at the same time.

    Args:
        url: URL of the file, with http:// or https://.
        path: Path to write the file to.
        algorithm: Hash algorithm, such as `"sha256"`.
        digest: The hash in hex digits, or its first 8 or more hex digits.

    Raises:
        InputError: If the download fails, is too slow or too large, or the hash differs.
        OSError: If the file cannot be written.
    """
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise InputError(f"Could not download {url}, because {path} is not a file")
        if has_digest(path, algorithm, digest):
            return path
        print(
            f"{path} is damaged or not the published file. Downloading the file again",
            file=sys.stderr,
        )
    folder, file_name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(f"Could not write to {folder}: {error.strerror}") from error
    with replace_atomically(path) as temporary_path:
        # Open the file first, so that a read-only folder fails before the download.
        with open(temporary_path, "xb") as file, _open_url(url, path) as response:
            size = response.length or 0
            with progress_bar(file_name, size, unit="bytes") as advance:
                for block in _read_blocks(response, url, path):
                    file.write(block)
                    advance(len(block))
        num_received = os.path.getsize(temporary_path)
        if size and num_received != size:
            raise InputError(
                f"The download of {url} ended after {num_received:,} of {size:,} bytes. "
                "Try again"
            )
        if not has_digest(temporary_path, algorithm, digest):
            raise InputError(
                f"{url} is not the published file, because its {algorithm} hash does not "
                f"begin with {digest}. The download was discarded"
            )
    return path


def _open_url(url: str, path: str) -> HTTPResponse:
    """Opens a URL, and prints a line if `fetch_file` will show no progress bar."""
    opener = urllib.request.build_opener()
    for scheme in ("data", "file", "ftp"):
        del vars(opener)["handle_open"][scheme]
    try:
        response: HTTPResponse = opener.open(url, timeout=30)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise _download_error(f"Could not download {url}", error, path) from None
    if not (response.length and sys.stderr.isatty()):
        size_text = f" {response.length / 2**20:.1f} MiB" if response.length else ""
        print(f"Downloading {url}{size_text}", file=sys.stderr)
    return response


def _read_blocks(response: HTTPResponse, url: str, path: str) -> Iterator[bytes]:
    """Yields the content of a download, which must not be too long or too slow."""
    num_bytes, num_required_bytes = 0, _MIN_BYTES
    end_time = time.monotonic() + _SECONDS
    try:
        while block := response.read1(2**18):
            num_bytes += len(block)
            if num_bytes + (response.length or 0) > _MAX_BYTES:
                raise OSError(f"more than {_MAX_BYTES:,} bytes")
            if time.monotonic() > end_time:
                if num_bytes < num_required_bytes:
                    raise OSError(f"less than {_MIN_BYTES:,} bytes in {_SECONDS} s")
                end_time += _SECONDS
                num_required_bytes = num_bytes + _MIN_BYTES
            yield block
    except (OSError, HTTPException) as error:
        raise _download_error(f"The download of {url} stopped", error, path) from None


def _download_error(text: str, error: Exception, path: str) -> InputError:
    reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    return InputError(
        f"{text} ({' '.join(reason.split())}). "
        f"On a computer without internet access, put the file at {path}"
    )
