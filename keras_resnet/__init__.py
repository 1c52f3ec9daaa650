"""ResNets of "Deep Residual Learning for Image Recognition" in Keras 3.

    import keras_resnet
    model = keras_resnet.ResNet50()

`help(keras_resnet.ResNet50)` documents what every constructor takes.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_resnet.complexity import profile
    from keras_resnet.errors import InputError
    from keras_resnet.resnet import (
        PlainNet18,
        PlainNet20,
        PlainNet32,
        PlainNet34,
        PlainNet44,
        PlainNet56,
        PlainNet110,
        PlainNet1202,
        ResNet,
        ResNet18,
        ResNet20,
        ResNet32,
        ResNet34,
        ResNet44,
        ResNet50,
        ResNet56,
        ResNet101,
        ResNet110,
        ResNet152,
        ResNet1202,
        endpoints,
    )
    from keras_resnet.variants import list_models

__all__ = [
    "InputError",
    "PlainNet18",
    "PlainNet20",
    "PlainNet32",
    "PlainNet34",
    "PlainNet44",
    "PlainNet56",
    "PlainNet110",
    "PlainNet1202",
    "ResNet",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet44",
    "ResNet50",
    "ResNet56",
    "ResNet101",
    "ResNet110",
    "ResNet152",
    "ResNet1202",
    "endpoints",
    "list_models",
    "profile",
]

_HOME = {"InputError": "errors", "list_models": "variants", "profile": "complexity"}


def __getattr__(name):
    """Imports a public name at its first use.

    Keras, and TensorFlow with it, takes seconds to import: so that the programs
    of this package answer `--helpshort` and a mistyped flag at once, it waits.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'resnet')}")
    except ModuleNotFoundError as error:
        from keras_resnet.errors import NO_TENSORFLOW, lacks_tensorflow

        if not lacks_tensorflow(error):
            raise
        raise ImportError(NO_TENSORFLOW, name="tensorflow") from error
    return getattr(module, name)


def __dir__():
    return sorted(__all__)
