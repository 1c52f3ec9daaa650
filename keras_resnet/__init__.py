"""ResNets of "Deep Residual Learning for Image Recognition" in Keras 3.

    import keras_resnet
    model = keras_resnet.ResNet50()

`help(keras_resnet.ResNet50)` documents the arguments of every constructor. The stub
`__init__.pyi` lists the public names.
"""

from typing import Any

from keras_resnet.support.lazy_imports import attach_stub

__version__ = "0.2.0.dev0"


def _make_network_constructor(name: str) -> Any:
    """Returns the constructor with a given name, such as `ResNet50`."""
    from keras_resnet.zoo import make_constructor

    # Pickling requires that all threads get the same function, hence `setdefault`.
    return globals().setdefault(name, make_constructor(name))


_import, __dir__, __all__ = attach_stub(__name__, _make_network_constructor)


def __getattr__(name: str) -> Any:
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        from keras_resnet.support import NO_TENSORFLOW, is_tensorflow_missing

        if not is_tensorflow_missing(error):
            raise
        raise ImportError(NO_TENSORFLOW, name="tensorflow") from error
