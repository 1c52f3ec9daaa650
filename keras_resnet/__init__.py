"""ResNets of "Deep Residual Learning for Image Recognition" in Keras 3.

    import keras_resnet
    model = keras_resnet.ResNet50()

`help(keras_resnet.ResNet50)` documents what every constructor takes. The public
names stand in one list, `__init__.pyi`.
"""

from typing import Any

from keras_resnet.support.front_door import open_front_door

__version__ = "0.2.0.dev0"


def _make(name: str) -> Any:
    """Makes a constructor, which the stub annotates."""
    from keras_resnet.zoo import constructor

    # Kept, so that two threads get the same function, which can be pickled.
    return globals().setdefault(name, constructor(name))


_import, __dir__, __all__ = open_front_door(__name__, _make)


def __getattr__(name: str) -> Any:
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        from keras_resnet.support import NO_TENSORFLOW, lacks_tensorflow

        if not lacks_tensorflow(error):
            raise
        raise ImportError(NO_TENSORFLOW, name="tensorflow") from error
