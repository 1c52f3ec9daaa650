"""A network that int8 breaks."""

import dataclasses

import numpy as np

from keras_resnet.nets import folding


def badly_scaled(classifier, factor=100.0):
    """The same function; in each block, one channel in eight is that much larger.

    A rectifier lets a positive factor pass, and the convolution after it takes it
    back.
    """
    model = folding.fold(classifier.model)
    names = [layer.name for layer in model.layers]
    for name in names:
        if name.endswith("_1_conv"):
            first, second = model.get_layer(name), name.replace("_1_conv", "_2_conv")
            second = model.get_layer(second)
            factors = np.ones(first.filters)
            factors[::8] = factor
            first.set_weights([values * factors for values in first.get_weights()])
            kernel, bias = second.get_weights()
            second.set_weights([kernel / factors[:, None], bias])
    return dataclasses.replace(classifier, model=model)
