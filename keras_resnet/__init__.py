"""ResNets of "Deep Residual Learning for Image Recognition" in Keras 3.

    import keras_resnet
    model = keras_resnet.ResNet50()

`help(keras_resnet.ResNet50)` documents what every constructor takes. The public
names stand in one list, `__init__.pyi`.
"""

from typing import Any

from keras_resnet.support.front_door import open_front_door, read_stub

__version__ = "0.2.0.dev0"

_import, _, _names = open_front_door(__name__, __file__)
# The stub annotates the constructors, which `zoo` makes at first use.
_constructors = [n for n in read_stub(__file__)[1] if not n.startswith("__")]
__all__ = sorted([*_names, *_constructors])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    try:
        if name not in _constructors:
            return _import(name)
        from keras_resnet.zoo import constructor
    except ModuleNotFoundError as error:
        from keras_resnet.support import NO_TENSORFLOW, lacks_tensorflow

        if not lacks_tensorflow(error):
            raise
        raise ImportError(NO_TENSORFLOW, name="tensorflow") from error
    return constructor(name)


def __dir__() -> list[str]:
    return __all__
