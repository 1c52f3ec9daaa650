"""Files that appear whole or not at all."""

import contextlib
import io
import os

from keras_resnet.support.errors import InputError
from keras_resnet.weights import reason_of


def write_file(path, content):
    """Writes a file that appears whole or not at all.

    Args:
        path: of the file.
        content: text or bytes.
    """
    beside = f"{path}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:  # Which does not always say of which file.
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def to_png(figure):
    """Returns the bytes of a matplotlib figure's PNG."""
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


@contextlib.contextmanager
def replace_when_whole(path, beside):
    """Puts the file `beside` in the place of another when it is whole."""
    try:
        yield beside
        os.replace(beside, path)
    except InputError:
        raise
    except Exception as error:  # h5py's, Keras's, safetensors' own.
        raise OSError(f"Could not write {path}: {reason_of(error)}") from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)
