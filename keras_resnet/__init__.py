"""ResNets of "Deep Residual Learning for Image Recognition" in Keras 3.

    import keras_resnet
    model = keras_resnet.ResNet50()

`help(keras_resnet.ResNet50)` documents what every constructor takes.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_resnet.classifiers import preprocessing_for
    from keras_resnet.complexity import profile
    from keras_resnet.errors import InputError
    from keras_resnet.registry import list_weights
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
        ResNet18D,
        ResNet20,
        ResNet32,
        ResNet34,
        ResNet34D,
        ResNet44,
        ResNet50,
        ResNet50D,
        ResNet50V2,
        ResNet56,
        ResNet101,
        ResNet101D,
        ResNet101V2,
        ResNet110,
        ResNet152,
        ResNet152D,
        ResNet152V2,
        ResNet1202,
        ResNeXt50_32x4d,
        ResNeXt101_32x8d,
        ResNeXt101_64x4d,
        SEResNet18,
        SEResNet34,
        SEResNet50,
        SEResNet101,
        SEResNet152,
        Wide_ResNet50_2,
        Wide_ResNet101_2,
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
    "ResNeXt50_32x4d",
    "ResNeXt101_32x8d",
    "ResNeXt101_64x4d",
    "ResNet",
    "ResNet18",
    "ResNet18D",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet34D",
    "ResNet44",
    "ResNet50",
    "ResNet50D",
    "ResNet50V2",
    "ResNet56",
    "ResNet101",
    "ResNet101D",
    "ResNet101V2",
    "ResNet110",
    "ResNet152",
    "ResNet152D",
    "ResNet152V2",
    "ResNet1202",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "Wide_ResNet50_2",
    "Wide_ResNet101_2",
    "endpoints",
    "list_models",
    "list_weights",
    "preprocessing_for",
    "profile",
]

_HOME = {
    "InputError": "errors",
    "list_models": "variants",
    "list_weights": "registry",
    "preprocessing_for": "classifiers",
    "profile": "complexity",
}


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
