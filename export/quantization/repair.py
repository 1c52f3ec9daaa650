"""A network that loses less in int8."""

import dataclasses

from .equalize import equalise
from .gptq import round_weights

# What a manifest says of a network after `repair`.
REPAIR = "channels equalised, weights rounded by their joint loss"


def repair(classifier, calibration, batch_size=16):
    """Returns a classifier for int8 to be made of, which loses less there.

    First `equalise`, then `round_weights`. Neither needs labels or training.

    Args:
        classifier: a `keras_resnet.classifiers.Classifier`, left unchanged.
        calibration: uint8 (n, height, width, channels), to measure activations on.
        batch_size: images at a time.

    Returns:
        A `Classifier` whose model is folded. Only quantised it is to be used.
    """
    model = equalise(classifier.model, calibration, batch_size)
    return dataclasses.replace(
        classifier, model=round_weights(model, calibration, batch_size)
    )
