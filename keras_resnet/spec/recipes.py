"""Table of training recipes.

A `Recipe` contains every setting that affects what a network learns. The flag
`--set field=value` of the commands changes a field.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from keras_resnet.spec.execution import Execution
from keras_resnet.spec.fields import replace_fields
from keras_resnet.support import InputError, check_choice


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training recipe.

    Below, "the run" means all training steps, and fractions are numbers from 0 to 1.

    Attributes:
        epochs: Number of passes over the training images.
        batch_size: Number of images per training step, over all replicas together.
        learning_rate: Peak learning rate for batches of `batch_size` images.
        iterations: Number of training steps. Replaces `epochs` unless it is 0.
        rate_rule: Rule that rescales the learning rate if the batch size is changed:
            `"linear"` (Goyal et al., arXiv:1706.02677), `"sqrt"` or `"none"`. A learning
            rate that is set explicitly is not rescaled.
        schedule: Learning-rate schedule. `"cosine"` falls to 0 at the end of the run.
            `"steps"` divides the learning rate by 10 after each fraction in `drops`.
            `"plateau"` divides the rate by 10 when the validation accuracy has not risen for
            `patience` epochs, as in the paper's ImageNet training.
        drops: Fractions of the run after which `"steps"` lowers the learning rate.
        patience: Number of epochs without improvement before `"plateau"` lowers the rate.
        warmup: Fraction of the run in which the learning rate rises linearly to its
            peak.
        warmup_from: Initial learning rate of the warm-up, as a fraction of the peak.
        careful_start: Whether the first 400 steps use a tenth of the learning rate, as
            in the paper for 110 layers ("until the training error is below 80% (about
            400 iterations)"). Disabled for fewer layers unless the user sets it.
        optimizer: `"sgd"`, with momentum, or `"lamb"` (arXiv:1904.00962).
        momentum: Momentum of SGD.
        weight_decay: Coefficient c. SGD adds c times the weights to the gradient
            (coupled, as in the paper), and LAMB to its update (as in timm). Keras's
            `SGD(weight_decay=)` is decoupled, about ten times weaker at momentum 0.9.
        decay_all: Whether weight decay also applies to biases and batch normalisation,
            not only to kernels.
        stage_rate: Ratio of the learning rate of a stage to that of the next stage. The
            head follows the last stage and has the full learning rate.
        clip_norm: Maximum global norm of the gradient; 0 disables clipping.
        accumulate: Number of micro-batches into which each replica splits its images to
            save memory. Micro-batches run one after the other, and batch normalisation
            uses the statistics of each micro-batch.
        loss: `"cross_entropy"`, or `"bce"` for a binary cross-entropy per class, in which
            every class of a mixed image is a positive (arXiv:2110.00476).
        label_smoothing: Fraction of each label that is spread evenly over all classes.
        ema: Decay per step of the moving average of the weights, at most
            (1 + steps) / (10 + steps). The averages are evaluated and saved. 0: off.
        stochastic_depth: Probability that training skips the last residual branch. For
            earlier branches, the probability falls linearly to 0 (arXiv:1603.09382).
        zero_gamma: Whether residual branches initially output zeros: the gamma of each
            branch's last batch normalisation starts at 0.
        validation: Fraction of the training images that is held out as validation split.
            With 0, the test images are the validation split.
        early_stopping: Number of epochs without a better validation accuracy after which
            the run ends; 0 disables it.
        sizes: Heights and widths of the training images in pixels, for equal parts of
            the run. `(128, 160, 192)` is progressive resizing. `(176,)` with a network
            of 224 pixels is FixRes (arXiv:1906.06423). Default: the input size.
        test_crop: Fraction of each side of a photograph that evaluation keeps. 0: the
            fraction of the initial weights, or without them 0.875 (CIFAR networks: 1).
        crop: Random crop of the training images. `"pad"` shifts the crop within the
            zero-padded image, or within the margin of a photograph's central crop.
            `"shorter_side"` first resizes the shorter side to a random size, 256 to 480
            for a crop of 224. `"inception"` draws the crop's area and aspect ratio.
        pad: Width of the zero padding on each side, as a fraction of the image height.
        area: Smallest fraction of the image's area that an `"inception"` crop covers.
        flip: Whether a random half of the images is mirrored. Datasets of digits and
            letters are not mirrored unless the user sets this field.
        colour: Standard deviation of the colour shift along the principal components.
        policy: Augmentation policy: `"rand_augment"` (torchvision's),
            `"rand_augment_increasing"` (timm's, used by "ResNet strikes back"),
            `"trivial_augment"` or `"none"`.
        magnitude: Strength of RandAugment; at most 30, or 10 with timm's policy.
        erase: Probability that a random rectangle is erased.
        mixup: Alpha of mixup's beta distribution; 0 disables mixup. If `cutmix` is also
            set, one of the two is drawn for each batch.
        cutmix: Alpha of CutMix's beta distribution; 0 disables CutMix.
        repeats: Number of copies of each image in a batch, each augmented differently.
            An epoch keeps its number of steps and thus has fewer distinct images.
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
    def mixes_images(self) -> bool:
        """Whether training images are mixed in pairs, by mixup or CutMix."""
        return self.mixup > 0 or self.cutmix > 0

    def compute_min_batch_size(self, num_replicas: int) -> int:
        """Returns the smallest batch size that gives every micro-batch an image.

        It is `num_replicas` times `accumulate`, doubled if images are mixed in pairs.
        """
        return num_replicas * self.accumulate * (2 if self.mixes_images else 1)


_PAPER_FIELDS: dict[str, Any] = {"decay_all": True, "schedule": "steps"}

_RSB_FIELDS: dict[str, Any] = {  # "ResNet strikes back", arXiv:2110.00476.
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
    # This recipe is for small datasets. Training on the digits takes one minute on two
    # CPU cores and reaches a validation accuracy of 99 %. Digits must not be mirrored.
    "digits": Recipe(36, 64, 0.1, warmup=0.1, weight_decay=5e-4, flip=False),
    # python -m keras_resnet.train --dataset=cifar10 --recipe=paper_cifar
    # Training takes two hours on two CPU cores (estimated from the time of a step). Table
    # 6 of the paper reports test accuracies of 91.25 % (ResNet-20), 93.03 % (ResNet-56)
    # and 93.57 % (ResNet-110). Section 4.2 trains for 64k iterations, divides the rate by
    # 10 at 32k and 48k, and holds out 5k of the 50k images. The paper does not say how many
    # images the final networks were trained on. This recipe assumes 45k, and `--set
    # validation=0` uses all 50k. The paper pads images with the mean colour, but this
    # recipe pads them with black.
    "paper_cifar": Recipe(
        182, 128, 0.1, iterations=64_000, validation=0.1, careful_start=True, **_PAPER_FIELDS
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=paper_imagenet --strategy=mirrored --set precision=mixed_float16
    # This recipe is for eight GPUs. Table 3 of the paper reports 10-crop top-1 errors on
    # ImageNet's validation images: 24.19 % (ResNet-34 C) and 22.85 % (ResNet-50). Section
    # 3.4 trains for up to 60e4 iterations and divides the rate by 10 on a plateau.
    "paper_imagenet": Recipe(
        120, 256, 0.1, iterations=600_000, crop="shorter_side", colour=0.1,
        **{**_PAPER_FIELDS, "schedule": "plateau"},
    ),
    # python -m keras_resnet.train --dataset=cifar10 --recipe=modern_cifar
    # Training takes half an hour on two CPU cores (estimated from the time of a step).
    # benchmarks/results/accuracy.csv has the accuracies after ten epochs on 10,000 JPEG
    # images: zero_gamma=True lowers the accuracy by 9 percentage points.
    "modern_cifar": Recipe(
        40, 64, 0.1, warmup=0.1, weight_decay=5e-4, label_smoothing=0.1, ema=0.998
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=rsb_a1 --strategy=mirrored --set precision=mixed_float16
    # Table 2 of "ResNet strikes back", arXiv:2110.00476, has the accuracy of ResNet-50 at
    # 224 pixels and the training time on four V100 GPUs: 80.4 % and 4.6 days (A1), 79.8 %
    # and 2.6 days (A2), 78.1 % and 15 hours (A3).
    "rsb_a1": Recipe(
        600, learning_rate=5e-3, warmup=5 / 600, weight_decay=0.01, mixup=0.2,
        label_smoothing=0.1, stochastic_depth=0.05, repeats=3, magnitude=7,
        **_RSB_FIELDS,
    ),
    "rsb_a2": Recipe(
        300, learning_rate=5e-3, warmup=5 / 300, weight_decay=0.02, mixup=0.1,
        stochastic_depth=0.05, repeats=3, magnitude=7, **_RSB_FIELDS,
    ),
    "rsb_a3": Recipe(
        100, learning_rate=8e-3, warmup=5 / 100, weight_decay=0.02, mixup=0.1,
        sizes=(160,), magnitude=6, **_RSB_FIELDS,
    ),
    # python -m keras_resnet.train --model=resnet50 --dataset=imagenet2012 \
    #     --recipe=torchvision_v2 --strategy=mirrored --set precision=mixed_float16
    # Training takes some days on eight V100 GPUs. The IMAGENET1K_V2 weights of torchvision
    # have an accuracy of 80.86 % (ResNet-50 v1.5, --stride_on=3x3) on the central 224 of
    # 232 pixels. torchvision averages the weights every 32 steps with decay 0.99998. `ema`
    # is the equivalent decay per step for 600 epochs and batches of 1024.
    "torchvision_v2": Recipe(
        600, 1024, 0.5, warmup=5 / 600, warmup_from=0.01, weight_decay=2e-5,
        label_smoothing=0.1, mixup=0.2, cutmix=1.0, policy="trivial_augment",
        erase=0.1, ema=1 - 2e-5 * 1024 / 600, crop="inception", repeats=4,
        sizes=(176,), test_crop=224 / 232,
    ),
    # python -m keras_resnet.train --dataset=folder:PATH --model=resnet50
    # This simple recipe for folders of photographs and one GPU follows Goyal et al.
    # (arXiv:1706.02677), who report 76.3 % accuracy for ResNet-50 on ImageNet.
    "photographs": Recipe(90, 256, 0.1, warmup=0.05, crop="inception"),
    # python -m keras_resnet.train --model=resnet50 --weights=imagenet \
    #     --dataset=folder:PATH --freeze=conv1..conv4
    # Fine-tuning takes minutes on a CPU if stages are frozen. A new head on a frozen
    # ResNet-18 is 65 % accurate after training on 1,000 CIFAR-10 images (JPEG).
    "finetune": Recipe(15, 64, 0.01, warmup=0.1),
}  # fmt: skip


def find_recipe(name: str, **changes: Any) -> Recipe:
    """Returns a recipe with some fields changed.

    Args:
        name: Key of `RECIPES`.
        **changes: New values of fields; `None` keeps the recipe's value. A new
            `batch_size` rescales the learning rate by `rate_rule`, unless
            `learning_rate` is passed too. A new `epochs` sets `iterations` to 0.

    Raises:
        InputError: If a name is unknown, or a value is invalid or contradicts another.
    """
    recipe = RECIPES[check_choice("recipe", name, RECIPES)]
    changes = {field: value for field, value in changes.items() if value is not None}
    if {"epochs", "iterations"} <= changes.keys() and changes["iterations"]:
        raise InputError(
            "Set either epochs or iterations, because each sets the length of the run. "
            f"Received: epochs={changes['epochs']}, iterations={changes['iterations']}"
        )
    if "epochs" in changes:
        changes["iterations"] = 0
    new_recipe = replace_fields(recipe, changes)
    if "learning_rate" not in changes:
        ratio = new_recipe.batch_size / recipe.batch_size
        exponent = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[new_recipe.rate_rule]
        learning_rate = recipe.learning_rate * ratio**exponent
        new_recipe = dataclasses.replace(new_recipe, learning_rate=learning_rate)
    maxima = {"rand_augment": 30, "rand_augment_increasing": 10}
    if new_recipe.magnitude > maxima.get(new_recipe.policy, new_recipe.magnitude):
        raise InputError(
            f"magnitude of {new_recipe.policy} must be at most {maxima[new_recipe.policy]}. "
            f"Received: magnitude={new_recipe.magnitude}"
        )
    if new_recipe.repeats > max(1, new_recipe.batch_size // 2):
        raise InputError(
            "A batch must contain at least two different images. Received: "
            f"batch_size={new_recipe.batch_size}, repeats={new_recipe.repeats}"
        )
    return new_recipe


def parse_changes(pairs: Iterable[str]) -> dict[str, str]:
    """Returns the new values that the flag `--set` contains, by field name.

    Args:
        pairs: Fields of `Recipe` and `Execution` with their values as text, such as
            `["label_smoothing=0.1", "steps_per_execution=10"]`.

    Raises:
        InputError: If a pair has no `=`, or a field is unknown or set twice.
    """
    field_names = [
        field.name for cls in (Recipe, Execution) for field in dataclasses.fields(cls)
    ]
    changes: dict[str, str] = {}
    for pair in pairs:
        field, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise InputError(f"--set requires field=value. Received: --set {pair}")
        if check_choice("field", field, field_names) in changes:
            raise InputError(
                f"{field} is set twice. Received: {field}={changes[field]} and {value}"
            )
        changes[field] = value
    return changes


# Datasets of digits or letters, whose images must not be mirrored.
_NO_FLIP_DATASETS = ("digits", "mnist", "emnist", "kmnist", "svhn_cropped")


def allows_flips(dataset: str) -> bool:
    """Returns whether mirroring preserves the classes of a dataset's images."""
    return dataset.partition(":")[0].partition("/")[0] not in _NO_FLIP_DATASETS


def choose_recipe(dataset: str, has_photographs: bool) -> str:
    """Returns the name of the recipe that a dataset uses by default.

    `has_photographs` is whether the images are photographs of different sizes.
    """
    if has_photographs:
        return "photographs"
    return "modern_cifar" if allows_flips(dataset) else "digits"
