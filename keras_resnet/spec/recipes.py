"""Training recipes as data.

A `Recipe` decides what is learnt. Any field is set by `--set field=value`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from keras_resnet.spec.execution import Execution
from keras_resnet.spec.fields import changed_fields
from keras_resnet.support import InputError, choose


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all replicas together.
        learning_rate: the highest, for that batch.
        iterations: steps in all, in the place of `epochs`.
        rate_rule: what another batch than the recipe's does to its learning rate:
            `"linear"` (Goyal et al., arXiv:1706.02677), `"sqrt"` or `"none"`. A rate
            that is named is taken as it is.
        schedule: `"cosine"` falls to 0 at the end; `"steps"` divides by 10 after
            each of `drops`; `"plateau"` when the held-out error has not fallen for
            `patience` epochs, as the paper does on ImageNet.
        drops: shares of the run.
        patience: epochs.
        warmup: share of the run over which the rate grows linearly to the highest.
        warmup_from: where it begins, as a share of the highest.
        careful_start: the paper's for nets of 110 layers or more: a tenth of the
            rate for the first 400 steps, "until the training error is below 80%
            (about 400 iterations)". Here it is always 400.
        optimizer: `"sgd"`, with momentum, or `"lamb"` (arXiv:1904.00962).
        momentum: of SGD.
        weight_decay: with SGD added, times the weight, to the gradient (the
            paper's, coupled; Keras's own SGD(weight_decay=) is decoupled and about
            ten times weaker at momentum 0.9); with LAMB to its update, as in timm.
        decay_all: whether it is also on batch normalisation and biases, not on
            kernels alone.
        stage_rate: learning rate of a stage as a share of that of what follows it.
        clip_norm: the gradient's norm is held below; 0 is no limit.
        accumulate: parts in which a replica goes through its share of the batch,
            one after the other, to save memory. Each is normalised by itself.
        loss: `"cross_entropy"`, or `"bce"`: a yes or no for each class
            (arXiv:2110.00476), where every class of a mixed image is a yes.
        label_smoothing: share of each label that all classes get.
        ema: decay, per step, of the moving average of the weights that is evaluated
            and saved; 0 is none. It is less at first: (1 + steps) / (10 + steps).
        stochastic_depth: probability that the last block's branch is left out;
            earlier ones' are less, in proportion (arXiv:1603.09382).
        zero_gamma: whether branches begin as zeros: the last gamma of each.
        validation: share of the training images that are held out, to choose by,
            in the place of the test images.
        early_stopping: epochs without a better accuracy after which the run ends; 0
            is never.
        sizes: heights and widths of the training images in pixels, each for an equal
            part of the run: `(128, 160, 192)` is progressive resizing, `(176,)` with
            a network of 224 is FixRes (arXiv:1906.06423). Empty: the network's.
        test_crop: share of the image that evaluation keeps; 0 is the usual.
        crop: `"pad"`: padded, then cropped at random (photographs are cropped from
            their margin instead); `"shorter_side"`: the shorter side drawn from 256
            to 480 for a crop of 224; `"inception"`: an area and an aspect ratio
            drawn at random.
        pad: zeros on each side, as a share of the height.
        area: lowest share of the image that an inception crop shows.
        flip: whether half of the images are mirrored; never digits and letters,
            unless it is asked for.
        colour: standard deviation of the colour shift along principal components.
        policy: `"rand_augment"` (torchvision's), `"rand_augment_increasing"` (timm's,
            of "ResNet strikes back"), `"trivial_augment"` or `"none"`.
        magnitude: of RandAugment.
        erase: probability that a rectangle is erased.
        mixup: alpha of mixup; 0 is none. With both, either is drawn for each batch.
        cutmix: alpha of cutmix; 0 is none.
        repeats: times that each image is in a batch, augmented each time otherwise.
            An epoch has as many steps as ever, and a share of the images.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    iterations: int = 0
    rate_rule: str = "linear"
    schedule: str = "cosine"
    drops: tuple[float, ...] = (0.5, 0.75)
    patience: int = 5
    warmup: float = 0.0
    warmup_from: float = 0.0
    careful_start: bool = False
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_all: bool = False
    stage_rate: float = 1.0
    clip_norm: float = 0.0
    accumulate: int = 1
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    ema: float = 0.0
    stochastic_depth: float = 0.0
    zero_gamma: bool = False
    validation: float = 0.0
    early_stopping: int = 0
    sizes: tuple[int, ...] = ()
    test_crop: float = 0.0
    crop: str = "pad"
    pad: float = 1 / 8
    area: float = 0.08
    flip: bool = True
    colour: float = 0.0
    policy: str = "none"
    magnitude: float = 9.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another, in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    def shares(self, replicas: int) -> int:
        """Returns the parts of a batch, none of which may lack images.

        Replicas, times `accumulate`, times 2 where images are mixed in pairs.
        """
        return replicas * self.accumulate * (2 if self.mixes else 1)


_PAPER: dict[str, Any] = {"decay_all": True, "schedule": "steps"}

_STRIKES_BACK: dict[str, Any] = {
    "batch_size": 2048,
    "optimizer": "lamb",
    "rate_rule": "sqrt",
    "loss": "bce",
    "clip_norm": 1.0,
    "cutmix": 1.0,
    "crop": "inception",
    "policy": "rand_augment_increasing",
    "test_crop": 0.95,
}

RECIPES = {
    # python -m keras_resnet.train
    # Two CPU cores, one minute: 99 % of the held-out digits. For small sets; digits
    # change their meaning in a mirror, so no flip.
    "digits": Recipe(36, 64, 0.1, warmup=0.1, weight_decay=5e-4, flip=False),
    # python -m keras_resnet.train --dataset=cifar10 --recipe=paper_cifar
    # Two CPU cores, two hours (estimated from its step). The paper's test accuracy (Table 6): 91.25 % with
    # ResNet-20, 93.03 % with ResNet-56, 93.57 % with ResNet-110.
    # Section 4.2: 64k iterations, rate divided at 32k and 48k, 45k/5k split, so that
    # the test images are only for `keras_resnet.evaluate`. (Read so, the paper's final
    # nets are trained on 45k; `--set validation=0` trains on all 50k.) Its padding is
    # the mean colour; here it is black.
    "paper_cifar": Recipe(
        182, 128, 0.1, iterations=64_000, validation=0.1, careful_start=True, **_PAPER
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=paper_imagenet --strategy=mirrored --set precision=mixed_float16
    # Eight GPUs. The paper's 10-crop error on the validation images
    # (Table 3): 24.01 % for ResNet-34 C, 22.85 % for ResNet-50.
    # Section 3.4: up to 60e4 iterations; the rate is divided by 10 on a plateau.
    "paper_imagenet": Recipe(
        120, 256, 0.1, iterations=600_000, crop="shorter_side", colour=0.1,
        **{**_PAPER, "schedule": "plateau"},
    ),
    # python -m keras_resnet.train --dataset=cifar10 --recipe=modern_cifar
    # Two CPU cores, half an hour (estimated from its step). On a JPEG set, ten
    # epochs of 10,000 images: see benchmarks/results/accuracy.csv.
    # Branches that begin as zeros (zero_gamma) cost 9 points there.
    "modern_cifar": Recipe(
        40, 64, 0.1, warmup=0.1, weight_decay=5e-4, label_smoothing=0.1, ema=0.998
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=rsb_a1 --strategy=mirrored --set precision=mixed_float16
    # Wightman et al., arXiv:2110.00476, Table 2. Published for ResNet-50 at 224: A1
    # 80.4 % (four V100, 4.6 days), A2 79.8 % (2.6 days), A3 78.1 % (15 hours).
    "rsb_a1": Recipe(
        600, learning_rate=5e-3, warmup=5 / 600, weight_decay=0.01, mixup=0.2,
        label_smoothing=0.1, stochastic_depth=0.05, repeats=3, magnitude=7,
        **_STRIKES_BACK,
    ),
    "rsb_a2": Recipe(
        300, learning_rate=5e-3, warmup=5 / 300, weight_decay=0.02, mixup=0.1,
        stochastic_depth=0.05, repeats=3, magnitude=7, **_STRIKES_BACK,
    ),
    "rsb_a3": Recipe(
        100, learning_rate=8e-3, warmup=5 / 100, weight_decay=0.02, mixup=0.1,
        sizes=(160,), magnitude=6, **_STRIKES_BACK,
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=torchvision_v2 --strategy=mirrored --set precision=mixed_float16
    # Eight V100 for some days. torchvision's IMAGENET1K_V2: 80.86 % for ResNet-50
    # (v1.5: add --stride_on=3x3), tested with 224 of 232 pixels.
    # Its average decays by 0.99998 every 32 steps, made for 600 epochs of 1024.
    "torchvision_v2": Recipe(
        600, 1024, 0.5, warmup=5 / 600, warmup_from=0.01, weight_decay=2e-5,
        label_smoothing=0.1, mixup=0.2, cutmix=1.0, policy="trivial_augment",
        erase=0.1, ema=1 - 2e-5 * 1024 / 600, crop="inception", repeats=4,
        sizes=(176,), test_crop=224 / 232,
    ),
    # python -m keras_resnet.train --dataset=folder:PATH --model=resnet50
    # One GPU. A plain recipe for photographs in folders, after Goyal et al.
    # (arXiv:1706.02677), who report 76.3 % for ResNet-50 on ImageNet.
    "photographs": Recipe(90, 256, 0.1, warmup=0.05, crop="inception"),
    # python -m keras_resnet.train --model=resnet50 --weights=imagenet \
    #     --dataset=folder:PATH --freeze=conv1..conv4
    # From weights that are trained already; minutes on a CPU with frozen stages. A new
    # head on ResNet-18's features: 65 % with 1,000 CIFAR-10 JPEGs (README).
    "finetune": Recipe(15, 64, 0.01, warmup=0.1),
}  # fmt: skip


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Returns the recipe of that name with some fields changed.

    Args:
        name: a key of `RECIPES`.
        **changes: fields and their values; `None` keeps the recipe's. Another
            `batch_size` changes the learning rate by the recipe's rule, unless that
            is given too; `epochs` takes the place of `iterations`.

    Raises:
        InputError: no such recipe or field, a value outside its range, or two that
            contradict each other.
    """
    recipe = RECIPES[choose("recipe", name, RECIPES)]
    changes = {field: value for field, value in changes.items() if value is not None}
    if {"epochs", "iterations"} <= changes.keys() and changes["iterations"]:
        raise InputError(
            "epochs and iterations both say how long to train; give one of them. "
            f"Received: epochs={changes['epochs']}, iterations={changes['iterations']}"
        )
    if "epochs" in changes:
        changes["iterations"] = 0
    changed = changed_fields(recipe, changes)
    if "learning_rate" not in changes:
        share = changed.batch_size / recipe.batch_size
        power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[changed.rate_rule]
        rate = recipe.learning_rate * share**power
        changed = dataclasses.replace(changed, learning_rate=rate)
    highest = {"rand_augment": 30, "rand_augment_increasing": 10}
    if changed.magnitude > highest.get(changed.policy, changed.magnitude):
        raise InputError(
            f"magnitude of {changed.policy} is at most {highest[changed.policy]}. "
            f"Received: magnitude={changed.magnitude}"
        )
    if changed.repeats > max(1, changed.batch_size // 2):
        raise InputError(
            "A batch holds two images at least, each of them repeated. Received: "
            f"batch_size={changed.batch_size}, repeats={changed.repeats}"
        )
    return changed


def parse_changes(pairs: Iterable[str]) -> dict[str, str]:
    """Reads what `--set` was given.

    Args:
        pairs: such as `["label_smoothing=0.1", "steps_per_execution=10"]`.

    Returns:
        A dict from fields of `Recipe` and `Execution` to strings.

    Raises:
        InputError: not a pair, a field that there is not, or one given twice.
    """
    known = [
        field.name for kind in (Recipe, Execution) for field in dataclasses.fields(kind)
    ]
    changes: dict[str, str] = {}
    for pair in pairs:
        field, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise InputError(f"--set takes field=value. Received: --set {pair}")
        if choose("field", field, known) in changes:
            raise InputError(
                f"{field} is set twice. Received: {changes[field]} and {value}"
            )
        changes[field] = value
    return changes


# Sets of characters, which a mirror changes.
_NOT_MIRRORED = ("digits", "mnist", "emnist", "kmnist", "svhn_cropped")


def may_be_mirrored(dataset: str) -> bool:
    """Whether images keep their meaning in a mirror; characters do not."""
    return (
        dataset.split(":", maxsplit=1)[0].split("/", maxsplit=1)[0] not in _NOT_MIRRORED
    )


def default_recipe(dataset: str, photographs: bool) -> str:
    """The recipe for a data set when none is named.

    Args:
        dataset: its name.
        photographs: whether its images are large and of any size.
    """
    if photographs:
        return "photographs"
    return "modern_cifar" if may_be_mirrored(dataset) else "digits"
