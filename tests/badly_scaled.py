"""Networks that lose their accuracy when they are converted to int8."""

import dataclasses

import numpy as np

from keras_resnet.nets import folding


def scale_channels_badly(classifier, factor=100.0):
    """Returns an equivalent classifier in which some channels have a larger range.

    In each block, every eighth output channel of the first convolution is multiplied by
    `factor`, and the second convolution divides these channels by `factor`. The ReLU
    between them commutes with this scaling, so the outputs do not change. In int8,
    however, all channels of a tensor share one quantisation step, which becomes too
    coarse for the other channels.
    """
    model = folding.fold(classifier.model)
    names = [layer.name for layer in model.layers]
    for name in names:
        if name.endswith("_1_conv"):
            first_conv = model.get_layer(name)
            second_conv = model.get_layer(name.replace("_1_conv", "_2_conv"))
            factors = np.ones(first_conv.filters)
            factors[::8] = factor
            first_conv.set_weights(
                [array * factors for array in first_conv.get_weights()]
            )
            kernel, bias = second_conv.get_weights()
            second_conv.set_weights([kernel / factors[:, None], bias])
    return dataclasses.replace(classifier, model=model)
