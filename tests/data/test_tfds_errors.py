"""Errors of TFDS become one-line messages."""

import pytest

from keras_resnet.data import tfds_sets
from keras_resnet.support.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")


class Builder:
    """A dataset builder that fails while it downloads."""

    name, data_dir = "mnist", "/data"

    def __init__(self, error):
        self.error = error

    def download_and_prepare(self):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        # A missing manual download, a missing library, no network, and a full disk.
        AssertionError("Manual directory /data/manual does not exist"),
        ModuleNotFoundError("No module named 'scipy'"),
        ConnectionError("Name or service not known"),
        OSError(28, "No space left on device"),
        tfds.download.DownloadError("Failed to get url https://a.org. HTTP code: 404"),
        tfds.core.download.download_manager.NonMatchingChecksumError(
            "a.tar is altered"
        ),
        tfds.core.download.extractor.ExtractError("Error while extracting a.tar"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_tfds_is_one_line(error):
    with pytest.raises(InputError) as raised:
        tfds_sets._prepare(Builder(error))
    message = str(raised.value)
    assert message.startswith("Could not prepare mnist in /data. ")
    assert message.endswith(f"({type(error).__name__}: {error})")
    assert "\n" not in message
