"""Table of published checkpoints, and names of their classes.

The publishers state the hashes and accuracies. Keras publishes all 32 hex digits of
MD5. The file names of torchvision and timm contain the first 8 hex digits of SHA-256.
Accuracies are for one central crop of ImageNet's 50,000 validation images.
"""

import dataclasses
import functools
import os

from keras_resnet.spec import find_variant
from keras_resnet.support import InputError, check_choice, keras_home
from keras_resnet.weights.origin import PIXEL_FORMATS, PixelFormat

TopK = tuple[float, float]  # Published top-1 and top-5 accuracy in percent.


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """A published checkpoint.

    Attributes:
        model: Name of the variant, as in `keras_resnet.list_models()`.
        name: Value of `weights=` that selects the checkpoint, such as `"keras"`.
        address: URL of the file, or its path in this package (without `://`).
        algorithm: Hash algorithm, `"md5"` or `"sha256"`.
        digest: Published hash in hex digits, or its first 8 hex digits.
        pixels: Pixel format of the inputs. `None` if the file contains the format.
        stride_on: See `keras_resnet.ResNet50`. `None` for basic blocks.
        top1: Published top-1 accuracy in percent for inputs of `pixels.size`.
        top5: Published top-5 accuracy in percent for inputs of `pixels.size`.
        mebibytes: Published size of the file in MiB; `None` if not published.
        licence: Published licence of the weights. This is not legal advice.
        source: Name of the publisher, such as `"torchvision"`.
        data: Name of the dataset that the weights were trained on.
    """

    model: str
    name: str
    address: str
    algorithm: str
    digest: str
    pixels: PixelFormat | None
    stride_on: str | None
    top1: float
    top5: float
    mebibytes: float | None
    licence: str
    source: str
    data: str = "imagenet"

    @property
    def path(self) -> str:
        """Path of the file, in the Keras cache or in this package."""
        if "://" not in self.address:
            return os.path.join(os.path.dirname(__file__), self.address)
        return os.path.join(cache_folder(), os.path.basename(self.address))


def cache_folder() -> str:
    """Returns the cache folder of Keras, `$KERAS_HOME/models` or `~/.keras/models`."""
    return os.path.join(keras_home(), "models")


def _keras_row(
    model: str, digest: str, top_k: TopK, size: int, mebibytes: float
) -> PublishedWeights:
    # Published v2 accuracies are for 299 pixels; users get about 8 points less at 224.
    is_v2 = model.endswith("v2")
    pixels = PIXEL_FORMATS["tf" if is_v2 else "caffe"]
    pixels = pixels._replace(interpolation="bicubic", size=size)
    return PublishedWeights(
        model, "keras",
        "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        f"{model}_weights_tf_dim_ordering_tf_kernels.h5",
        "md5", digest, pixels, "3x3" if is_v2 else "1x1", *top_k, mebibytes,
        "BSD" if is_v2 else "MIT", "keras.applications",
    )  # fmt: skip


def _torchvision_row(
    model: str, version: int, digest: str, resize: int, top_k: TopK, mebibytes: float
) -> PublishedWeights:
    pixels = PIXEL_FORMATS["torch"]._replace(crop=224 / resize, size=224)
    return PublishedWeights(
        model, f"torchvision_v{version}",
        f"https://download.pytorch.org/models/{model}-{digest}.pth",
        "sha256", digest, pixels, _find_stride_on(model), *top_k, mebibytes,
        "BSD-3-Clause (torchvision; the weights may have terms of their own)",
        "torchvision",
    )  # fmt: skip


def _timm_row(
    model: str, recipe: str, owner: str, file: str, size: int, resize: int, top_k: TopK
) -> PublishedWeights:
    digest = file.removesuffix(".pth").rpartition("-")[2]
    pixels = PIXEL_FORMATS["torch"]._replace(crop=size / resize, size=size)
    return PublishedWeights(
        model, f"timm_{recipe}",
        f"https://github.com/{owner}/pytorch-image-models/releases/download/{file}",
        "sha256", digest, pixels._replace(interpolation="bicubic"),
        _find_stride_on(model), *top_k, None, "Apache-2.0", "timm",
    )  # fmt: skip


def _find_stride_on(model: str) -> str | None:
    return None if find_variant(model).block == "basic" else "3x3"


# fmt: off
# `weights="imagenet"` selects the first row of a variant. Weights of keras.applications
# come first, because they belong to the networks of the paper and can be read without
# PyTorch. Weights of torchvision come next.
REGISTRY = (
    _keras_row("resnet50", "2cb95161c43110f7111970584f804107", (74.9, 92.1), 224, 98),
    _keras_row("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", (76.4, 92.8), 224, 171),
    _keras_row("resnet152", "100835be76be38e30d865e96f2aaae62", (76.6, 93.1), 224, 232),
    _keras_row("resnet50v2", "3ef43a0b657b3be2300d5770ece849e0", (76.0, 93.0), 299, 98),
    _keras_row("resnet101v2", "6343647c601c52e1368623803854d971", (77.2, 93.8), 299, 171),
    _keras_row("resnet152v2", "a49b44d1979771252814e80f8ec446f9", (78.0, 94.2), 299, 232),
    _torchvision_row("resnet18", 1, "f37072fd", 256, (69.758, 89.078), 44.661),
    _torchvision_row("resnet34", 1, "b627a593", 256, (73.314, 91.42), 83.275),
    _torchvision_row("resnet50", 1, "0676ba61", 256, (76.13, 92.862), 97.781),
    _torchvision_row("resnet50", 2, "11ad3fa6", 232, (80.858, 95.434), 97.79),
    _torchvision_row("resnet101", 1, "63fe2227", 256, (77.374, 93.546), 170.511),
    _torchvision_row("resnet101", 2, "cd907fc2", 232, (81.886, 95.78), 170.53),
    _torchvision_row("resnet152", 1, "394f9c45", 256, (78.312, 94.046), 230.434),
    _torchvision_row("resnet152", 2, "f82ba261", 232, (82.284, 96.002), 230.474),
    _torchvision_row("resnext50_32x4d", 1, "7cdf4587", 256, (77.618, 93.698), 95.789),
    _torchvision_row("resnext50_32x4d", 2, "1a0047aa", 232, (81.198, 95.34), 95.833),
    _torchvision_row("resnext101_32x8d", 1, "8ba56ff5", 256, (79.312, 94.526), 339.586),
    _torchvision_row("resnext101_32x8d", 2, "110c445d", 232, (82.834, 96.228), 339.673),
    _torchvision_row("resnext101_64x4d", 1, "173b62eb", 232, (83.246, 96.454), 319.318),
    _torchvision_row("wide_resnet50_2", 1, "95faca4d", 256, (78.468, 94.086), 131.82),
    _torchvision_row("wide_resnet50_2", 2, "9ba9bcbe", 232, (81.602, 95.758), 263.124),
    _torchvision_row("wide_resnet101_2", 1, "32ee1156", 256, (78.848, 94.284), 242.896),
    _torchvision_row("wide_resnet101_2", 2, "d733dc28", 232, (82.51, 96.02), 484.747),
    _timm_row("resnet18", "a1", "huggingface", "v0.1-rsb-weights/resnet18_a1_0-d63eafa0.pth", 224, 235, (71.488, 90.076)),
    _timm_row("resnet18", "a2", "huggingface", "v0.1-rsb-weights/resnet18_a2_0-b61bd467.pth", 224, 235, (70.634, 89.486)),
    _timm_row("resnet18", "a3", "huggingface", "v0.1-rsb-weights/resnet18_a3_0-40c531c8.pth", 224, 235, (68.246, 88.158)),
    _timm_row("resnet18d", "ra2", "rwightman", "v0.1-weights/resnet18d_ra2-48a79e06.pth", 224, 256, (72.268, 90.682)),
    _timm_row("resnet34", "a1", "huggingface", "v0.1-rsb-weights/resnet34_a1_0-46f8f793.pth", 224, 235, (76.414, 92.886)),
    _timm_row("resnet34", "a2", "huggingface", "v0.1-rsb-weights/resnet34_a2_0-82d47d71.pth", 224, 235, (75.516, 92.456)),
    _timm_row("resnet34", "a3", "huggingface", "v0.1-rsb-weights/resnet34_a3_0-a20cabb6.pth", 224, 235, (72.982, 91.116)),
    _timm_row("resnet34d", "ra2", "rwightman", "v0.1-weights/resnet34d_ra2-f8dcfcaf.pth", 224, 256, (77.104, 93.376)),
    _timm_row("resnet50", "a1", "rwightman", "v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth", 224, 235, (80.382, 94.598)),
    _timm_row("resnet50", "a2", "huggingface", "v0.1-rsb-weights/resnet50_a2_0-a2746f79.pth", 224, 235, (79.828, 94.560)),
    _timm_row("resnet50", "a3", "huggingface", "v0.1-rsb-weights/resnet50_a3_0-59cae1ef.pth", 224, 235, (78.052, 93.780)),
    _timm_row("resnet50d", "ra2", "rwightman", "v0.1-weights/resnet50d_ra2-464e36ba.pth", 224, 256, (80.548, 95.158)),
    _timm_row("resnet50d", "a1", "huggingface", "v0.1-rsb-weights/resnet50d_a1_0-e20cff14.pth", 224, 235, (80.730, 94.678)),
    _timm_row("resnet50d", "a2", "huggingface", "v0.1-rsb-weights/resnet50d_a2_0-a3adc64d.pth", 224, 235, (80.268, 94.642)),
    _timm_row("resnet50d", "a3", "huggingface", "v0.1-rsb-weights/resnet50d_a3_0-403fdfad.pth", 224, 235, (78.742, 94.236)),
    _timm_row("resnet101", "a1", "huggingface", "v0.1-rsb-weights/resnet101_a1_0-cdcb52a9.pth", 224, 235, (81.494, 95.164)),
    _timm_row("resnet101", "a2", "huggingface", "v0.1-rsb-weights/resnet101_a2_0-6edb36c7.pth", 224, 235, (81.344, 95.198)),
    _timm_row("resnet101", "a3", "huggingface", "v0.1-rsb-weights/resnet101_a3_0-1db14157.pth", 224, 235, (79.820, 94.614)),
    _timm_row("resnet101d", "ra2", "rwightman", "v0.1-weights/resnet101d_ra2-2803ffab.pth", 256, 269, (82.252, 96.068)),
    _timm_row("resnet152", "a1", "huggingface", "v0.1-rsb-weights/resnet152_a1_0-2eee8a7a.pth", 224, 235, (81.998, 95.294)),
    _timm_row("resnet152", "a2", "huggingface", "v0.1-rsb-weights/resnet152_a2_0-b4c6978f.pth", 224, 235, (81.764, 95.270)),
    _timm_row("resnet152", "a3", "huggingface", "v0.1-rsb-weights/resnet152_a3_0-134d4688.pth", 224, 235, (80.548, 95.004)),
    _timm_row("resnet152d", "ra2", "rwightman", "v0.1-weights/resnet152d_ra2-5cac0439.pth", 256, 269, (83.156, 96.382)),
    _timm_row("seresnet50", "a1", "huggingface", "v0.1-rsb-weights/seresnet50_a1_0-ffa00869.pth", 224, 235, (80.012, 94.706)),
    _timm_row("seresnet50", "a2", "huggingface", "v0.1-rsb-weights/seresnet50_a2_0-850de0d9.pth", 224, 235, (80.102, 94.720)),
    _timm_row("seresnet50", "a3", "huggingface", "v0.1-rsb-weights/seresnet50_a3_0-317ecd56.pth", 224, 235, (77.036, 93.072)),
    _timm_row("seresnet50", "ra2", "rwightman", "v0.1-weights/seresnet50_ra_224-8efdb4bb.pth", 224, 256, (80.260, 95.068)),
    _timm_row("resnext50_32x4d", "a1", "huggingface", "v0.1-rsb-weights/resnext50_32x4d_a1_0-b5a91a1d.pth", 224, 235, (80.526, 94.458)),
    _timm_row("resnext50_32x4d", "a2", "huggingface", "v0.1-rsb-weights/resnext50_32x4d_a2_0-efc76add.pth", 224, 235, (80.444, 94.630)),
    _timm_row("resnext50_32x4d", "a3", "huggingface", "v0.1-rsb-weights/resnext50_32x4d_a3_0-3e450271.pth", 224, 235, (79.252, 94.290)),
    # This package trained these weights. Their folder also contains log and metrics.
    PublishedWeights("resnet20", "fashion_mnist", "trained/resnet20_fashion_mnist/resnet20_fashion_mnist.keras", "sha256", "39db9c7adc2afa55ae6b84c1cf0aafac94a041cb6481457c8b852570125ad7d7", None, None, 94.0, 99.9, 1.29, "Apache-2.0", "keras_resnet", "fashion_mnist"),
)
# fmt: on

DEFAULT_WEIGHTS = "imagenet"

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def list_weights(model: str | None = None) -> list[PublishedWeights]:
    """Returns the published weights that the argument `weights=` accepts.

    Args:
        model: Name of a variant, as in `keras_resnet.list_models()`; `None` for all.

    Returns:
        Rows of `REGISTRY`. `weights="imagenet"` selects a variant's first row.

    Raises:
        InputError: If there is no such variant.
    """
    if model is not None:
        find_variant(model)  # Raises InputError if `model` is unknown.
    return [row for row in REGISTRY if model is None or row.model == model.lower()]


def find_published_weights(model: str | None, name: str) -> PublishedWeights:
    """Returns the published weights of a variant by their name or `"imagenet"`.

    Raises:
        InputError: If the variant has no weights of this name.
    """
    rows = list_weights(model)
    if not rows:
        model_names = dict.fromkeys(row.model for row in REGISTRY)
        raise InputError(
            f"There are no published weights of {model}, only of {', '.join(model_names)}. "
            f"Pass the path of a weights file instead. Received: weights={name!r}"
        )
    names = [row.name for row in rows]
    has_default = "://" in rows[0].address  # Only ImageNet weights have a URL.
    check_choice("weights", name, [DEFAULT_WEIGHTS, *names] if has_default else names)
    return rows[0 if name == DEFAULT_WEIGHTS else names.index(name)]


def class_ids(dataset: str) -> tuple[str, ...] | None:
    """Returns the WordNet ids of ImageNet's classes, or `None` for other datasets."""
    return _imagenet_classes(0) if dataset == "imagenet" else None


def class_names(dataset: str) -> tuple[str, ...] | None:
    """Returns the class names of a dataset in the order of the labels.

    The 1,000 names of `"imagenet"` are all different. Returns `None` for datasets
    other than `"imagenet"` and `"cifar10"`.
    """
    if dataset == "cifar10":
        return CIFAR10_CLASSES
    return _imagenet_classes(1) if dataset == "imagenet" else None


@functools.cache
def _imagenet_classes(column: int) -> tuple[str, ...]:
    path = os.path.join(os.path.dirname(__file__), "imagenet_classes.txt")
    with open(path, encoding="utf-8") as file:
        return tuple(line.rstrip("\n").split(" ", 1)[column] for line in file)
