"""Real trained weights on real images, beside what PyTorch gave for them.

They lie beside the checkout (see the README there) and are no part of the
project: without them these tests are skipped.
"""

import gzip
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import SHARED

import keras_resnet
from keras_resnet.evaluate import evaluate
from keras_resnet.predict import predict

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def imagenet_weights(tmp_path_factory):
    """A folder with resnet18.safetensors and resnet50.safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    script = SHARED.parent / "tools" / "expand_weights.py"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """100 JPEGs of ImageNet in folders by WordNet id."""
    folder = tmp_path_factory.mktemp("jpegs")
    for path in (SHARED / "imagenet/jpeg100").iterdir():
        inside = folder / path.name.split("_")[0]
        inside.mkdir()
        (inside / path.name).symlink_to(path)
    return folder


def logits(model, images):
    return model.predict(images, batch_size=50, verbose=0)


@pytest.mark.parametrize(
    ("depth", "right"), [(20, 3992), pytest.param(56, 4000, marks=pytest.mark.full)]
)
def test_cifar_weights(depth, right):
    folder = SHARED / "cifar10_weights"
    model = getattr(keras_resnet, f"ResNet{depth}")(
        weights=str(folder / f"resnet{depth}.npz"), classifier_activation=None
    )
    train = np.load(SHARED / "cifar10/cifar10_train_first4000.npz")
    oracle = np.load(folder / f"resnet{depth}_oracle64_lossless.npz")
    found = logits(model, train["x"])
    assert np.abs(found[:64] - oracle["logits"]).max() <= 1e-4
    assert (found.argmax(axis=1) == train["y"]).sum() == right
    test = np.load(SHARED / "cifar10/cifar10_test200.npz")
    found = logits(model, test["x"])
    assert np.abs(found - test[f"logits_resnet{depth}"]).max() <= 1e-4
    assert (found.argmax(axis=1) == test["y"]).mean() == {20: 0.90, 56: 0.91}[depth]


@pytest.mark.parametrize(
    ("depth", "oracle", "right"), [(18, "18_small", 0.77), (50, "50_large", 0.79)]
)
def test_imagenet_weights(imagenet_weights, depth, oracle, right):
    model = getattr(keras_resnet, f"ResNet{depth}")(
        weights=imagenet_weights / f"resnet{depth}.safetensors",
        classifier_activation=None,
    )
    crops = np.load(SHARED / "imagenet/imagenet_crops200.npz")
    found = logits(model, crops["x"])
    stored = np.load(SHARED / f"imagenet/ktb_resnet{oracle}_oracle200.npz")["logits"]
    assert np.abs(found - stored).max() <= 1e-4
    assert (found.argmax(axis=1) == crops["y"]).mean() == right


@pytest.mark.parametrize(
    ("depth", "views", "right", "top5", "loss"),
    [
        # torchvision 0.29.1's nets and transforms (Resize(256), CenterCrop(224)) on
        # Pillow 13's images; TenCrop of the central 256 pixels.
        (18, "single", 79, 92, 0.9918),
        (50, "single", 74, 95, 0.8687),
        pytest.param(18, "10crop", 78, None, None, marks=pytest.mark.full),
    ],
)
def test_from_jpeg_files(
    imagenet_weights, jpegs, tmp_path, depth, views, right, top5, loss
):
    """End to end; pixels are resampled by TensorFlow, so an image may tip over."""
    found = evaluate(
        f"resnet{depth}",
        str(imagenet_weights / f"resnet{depth}.safetensors"),
        f"folder:{jpegs}",
        views=views,
        batch_size=50,
        strategy="one_device",
        output=str(tmp_path),
    )
    assert found["images"] == 100
    assert abs(100 * found["accuracy"] - right) <= 1
    if top5:
        assert abs(100 * found["top5_accuracy"] - top5) <= 1
        assert found["loss"] == pytest.approx(loss, abs=5e-3)


@pytest.mark.full
def test_multiscale_is_better_than_one_crop(imagenet_weights, jpegs, tmp_path):
    """As in the paper's Table 4 beside Table 3: 21.84 against 24.52 % for ResNet-34."""
    right = {
        views: evaluate(
            "resnet18",
            str(imagenet_weights / "resnet18.safetensors"),
            f"folder:{jpegs}",
            views=views,
            batch_size=50,
            output=str(tmp_path),
        )["accuracy"]
        for views in ("single", "multiscale")
    }
    assert right["multiscale"] > right["single"]


def test_predict_names_a_shark(imagenet_weights):
    path = str(SHARED / "imagenet/jpeg100/n01491361_tiger_shark.JPEG")
    weights = str(imagenet_weights / "resnet50.safetensors")
    ((name, share), *_) = predict([path], "resnet50", weights)[path]
    assert name == "tiger shark"
    assert share > 0.9


def test_frozen_imagenet_features_tell_cifar_classes_apart(imagenet_weights, tmp_path):
    """A new head on 40 real pictures of each of three classes, one epoch in all.

    Chance is a third. The pictures are CIFAR-10's, lossless, of 32 pixels; the net
    sees them at 64.
    """
    from keras_resnet.training.run import train

    source = np.load(SHARED / "cifar10/cifar10_train_first4000.npz")
    for label, name in ((1, "automobile"), (5, "dog"), (8, "ship")):
        images = source["x"][source["y"] == label][:60]
        for i, image in enumerate(images):
            part = pathlib.Path(tmp_path, "pictures", "train" if i < 40 else "test")
            (part / name).mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(part / name / f"{i:02d}.png", image, scale=False)
    rows = train(
        "resnet18",
        f"folder:{tmp_path}/pictures",
        weights=str(imagenet_weights / "resnet18.safetensors"),
        freeze="conv1..conv5",
        image_size=64,
        epochs=4,
        batch_size=20,
        learning_rate=0.02,
        strategy="one_device",
        model_dir=str(tmp_path / "run"),
        verbose=0,
    )
    assert rows[-1]["val_accuracy"] > 0.7


def test_our_own_weights_are_as_good_as_their_record_says():
    """Fashion-MNIST's 10,000 test images; published ResNets reach 93 % and more."""
    model = keras_resnet.ResNet20(weights="fashion_mnist")
    found = []
    for name, start in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(SHARED / f"fashion_mnist/t10k-{name}-ubyte.gz") as file:
            found.append(np.frombuffer(file.read(), np.uint8, offset=start))
    images, labels = found[0].reshape(-1, 28, 28, 1), found[1]
    right = logits(model, images).argmax(1) == labels
    folder = pathlib.Path(keras_resnet.__file__).parent / "weights/trained"
    record = (folder / "resnet20_fashion_mnist/metrics.csv").read_text().splitlines()
    columns = record[0].split(",")
    said = float(record[-1].split(",")[columns.index("val_accuracy")])
    assert right.mean() == pytest.approx(said, abs=3e-4)
    assert right.mean() > 0.93
