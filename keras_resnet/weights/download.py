"""Downloads of published weights, which are verified by a hash."""

import hashlib
import os
import sys
import urllib.request
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError

from keras_resnet.support import InputError, progress_bar, replace_atomically
from keras_resnet.weights.registry import PublishedWeights


def fetch_published_weights(row: PublishedWeights) -> str:
    """Downloads the file of published weights if necessary, and returns its path."""
    return fetch_file(row.address, row.path, row.algorithm, row.digest)


def has_digest(path: str, algorithm: str, digest: str) -> bool:
    """Returns whether the hash of a file begins with the hex digits `digest`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digest)


def fetch_file(url: str, path: str, algorithm: str, digest: str) -> str:
    """Downloads a file, unless it exists with the right hash.

    The hash of the download is verified, too. The file is written atomically, so two
    processes can download it at the same time.

    Args:
        url: URL of the file.
        path: Path to write the file to.
        algorithm: Hash algorithm, such as `"sha256"`.
        digest: The hash in hex digits, or its first 8 or more hex digits.

    Returns:
        `path`.

    Raises:
        InputError: If the download fails or the hash differs.
        OSError: If the file cannot be written.
    """
    if os.path.exists(path):
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
            size = getattr(response, "length", None) or 0
            with progress_bar(file_name, size, unit="bytes") as advance:
                while block := _read_block(response, url, path):
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
    try:
        response: HTTPResponse = urllib.request.urlopen(url, timeout=30)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise _download_error(f"Could not download {url}", error, path) from None
    size = getattr(response, "length", None)  # A file:// URL has no length.
    if not (size and sys.stderr.isatty()):
        size_text = f" {size / 2**20:.1f} MiB" if size else ""
        print(f"Downloading {url}{size_text}", file=sys.stderr)
    return response


def _read_block(response: HTTPResponse, url: str, path: str) -> bytes:
    """Returns the next bytes of a download, or `b""` at the end."""
    try:
        return response.read(2**18)
    except (OSError, HTTPException) as error:
        raise _download_error(f"The download of {url} stopped", error, path) from None


def _download_error(text: str, error: Exception, path: str) -> InputError:
    reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    return InputError(
        f"{text} ({' '.join(reason.split())}). "
        f"On a computer without internet access, put the file at {path}"
    )
