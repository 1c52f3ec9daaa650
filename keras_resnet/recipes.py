"""Training recipes as data."""

import dataclasses

from keras_resnet.errors import InputError, choose


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum and coupled weight decay.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all replicas together.
        learning_rate: the highest; reached after the warm-up.
        schedule: `"cosine"` falls to 0 at the end; `"steps"` divides by 10 at
            one half and at three quarters of the run, as the paper does.
        warmup: share of the run over which the rate grows linearly from 0.
        momentum: of SGD.
        weight_decay: added, times the weight, to the gradient of every kernel
            (the paper's, coupled; Keras's own SGD(weight_decay=) is decoupled
            and about ten times weaker at momentum 0.9). None on batch
            normalisation and biases, which the paper leaves open.
        pad: zeros on each side before the random crop, as a share of the
            height. Photographs are cropped from their margin instead.
        flip: whether half of the images are mirrored.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    warmup: float
    momentum: float
    weight_decay: float
    pad: float
    flip: bool


# fmt: off
RECIPES = {
    #                      epochs batch  rate  schedule  warmup momentum decay   pad   flip
    # For small sets; digits change their meaning in a mirror, so no flip.
    "digits":       Recipe(   36,   64,  0.1,  "cosine",  0.1,    0.9,   5e-4,  1 / 8, False),
    # Section 4.2 of the paper: 64k iterations of 128 on 50,000 images. Its
    # padding is the mean colour; here it is black.
    "paper_cifar":  Recipe(  164,  128,  0.1,  "steps",   0.0,    0.9,   1e-4,  1 / 8, True),
    # A plain recipe for photographs in folders.
    "photographs":  Recipe(   90,  256,  0.1,  "cosine",  0.05,   0.9,   1e-4,  0.0,   True),
    # From weights that are trained already.
    "finetune":     Recipe(   15,   64,  0.01, "cosine",  0.1,    0.9,   1e-4,  1 / 8, True),
}
# fmt: on


def find_recipe(name, **changes):
    """Returns the recipe of that name with some fields changed.

    Args:
        name: a key of `RECIPES`.
        **changes: fields and their values; `None` keeps the recipe's.

    Raises:
        InputError: no such recipe, or a value outside its range.
    """
    recipe = RECIPES[choose("recipe", name, RECIPES)]
    changes = {field: value for field, value in changes.items() if value is not None}
    for field, value in changes.items():
        if not value > 0:
            raise InputError(f"{field} must be above 0. Received: {field}={value}")
    return dataclasses.replace(recipe, **changes)


# Sets of characters, which a mirror changes.
_NOT_MIRRORED = ("digits", "mnist", "emnist", "kmnist", "svhn_cropped")


def default_recipe(dataset, photographs):
    """The recipe for a data set when none is named.

    Args:
        dataset: its name.
        photographs: whether its images are large and of any size.
    """
    if photographs:
        return "photographs"
    base = dataset.split(":")[0].split("/")[0]
    return "digits" if base in _NOT_MIRRORED else "paper_cifar"
