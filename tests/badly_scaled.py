"""A network that loses its accuracy in int8."""

import dataclasses

import numpy as np

from keras_resnet.nets import folding


def scale_channels_badly(classifier, factor=100.0):
    """Returns an equivalent classifier in which some channels have a larger range.

    In each block, every eighth output channel of the first convolution is multiplied by
    `factor`, and the second convolution divides by it. The ReLU between them does not
    change that. The function is the same, but int8 activations have a single
    quantisation step per tensor, which is then too coarse for the other channels.
    """
    model = folding.fold(classifier.model)
    names = [layer.name for layer in model.layers]
    for name in names:
        if name.endswith("_1_conv"):
            first = model.get_layer(name)
            second = model.get_layer(name.replace("_1_conv", "_2_conv"))
            factors = np.ones(first.filters)
            factors[::8] = factor
            first.set_weights([values * factors for values in first.get_weights()])
            kernel, bias = second.get_weights()
            second.set_weights([kernel / factors[:, None], bias])
    return dataclasses.replace(classifier, model=model)
