"""Preparation of a network for int8."""

import dataclasses

import numpy as np

from keras_resnet.evaluation import Classifier

from .equalize import equalise
from .gptq import round_weights

# Description of `repair_network` in the manifest of a bundle.
REPAIR_DESCRIPTION = "channels equalised, weights rounded by GPTQ"


def repair_network(classifier: Classifier, calibration: np.ndarray) -> Classifier:
    """Prepares a network for int8 conversion, so that it loses less accuracy.

    Applies `equalise`, then `round_weights`. Neither needs labels or training. Both
    measure activations on `calibration`, uint8, (n, height, width, channels).

    Returns:
        A classifier whose model is folded. Use it only to convert it to int8.
    """
    model = round_weights(equalise(classifier.model, calibration), calibration)
    return dataclasses.replace(classifier, model=model)
