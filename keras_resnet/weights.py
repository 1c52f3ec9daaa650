"""Reading and writing models and weights, whole or not at all."""

import os
import zipfile

from keras_resnet.errors import InputError

_ACCEPTED = "a .keras file, or a .weights.h5 file of the same architecture"


def load_weights(model, path):
    """Loads the weights of a file into a model.

    Args:
        model: a built `keras.Model`.
        path: of a `.weights.h5` or `.keras` file.

    Raises:
        InputError: there is no such file, it is damaged, or its weights are not
            this architecture's.
    """
    _check(path, (".weights.h5", ".keras"))
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and h5py raise many kinds.
        raise _unreadable(path, f"weights of {model.name}", error) from error


def load_model(path):
    """Loads a `.keras` file.

    Raises:
        InputError: there is no such file, or it is damaged or foreign.
    """
    import keras

    _check(path, (".keras",))
    try:
        return keras.models.load_model(path)
    except Exception as error:  # As above.
        raise _unreadable(path, "a Keras model", error) from error


def save_model(model, path):
    """Saves a model as a `.keras` file that appears whole or not at all.

    Raises:
        OSError: it could not be written, as on a full disk; what stood there
            before still does.
    """
    beside = f"{path.removesuffix('.keras')}.part.keras"
    try:
        model.save(beside)
        os.replace(beside, path)
    except (OSError, RuntimeError, ValueError) as error:  # h5py's and Keras's own.
        raise OSError(f"Could not write {path}: {_reason(error)}") from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def _check(path, endings):
    if not isinstance(path, str | os.PathLike) or not str(path).endswith(endings):
        raise InputError(f"weights must be {_ACCEPTED}. Received: {path!r}")
    if not os.path.isfile(path):
        raise InputError(
            f"There is no such file. Accepted: {_ACCEPTED}. Received: {path!r}"
        )
    if str(path).endswith(".keras") and not zipfile.is_zipfile(path):
        raise InputError(f"The file is damaged, or no .keras file. Received: {path!r}")


def _unreadable(path, what, error):
    return InputError(f"{path} does not hold {what}: {_reason(error)}")


def _reason(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
