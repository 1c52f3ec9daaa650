"""Published weights on real images have the logits and accuracies of PyTorch.

The folder `shared` next to the checkout contains the weights and images. Its README
describes them. Without this folder, the tests are skipped.
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
    """Folder with weights of ResNet-18 and ResNet-50 in safetensors files."""
    folder = tmp_path_factory.mktemp("weights")
    script = SHARED.parent / "tools" / "expand_weights.py"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def jpeg_folder(tmp_path_factory):
    """Folder with 100 JPEG files of ImageNet, in a subfolder for each WordNet id."""
    folder = tmp_path_factory.mktemp("jpegs")
    for path in (SHARED / "imagenet/jpeg100").iterdir():
        class_folder = folder / path.name.split("_")[0]
        class_folder.mkdir()
        (class_folder / path.name).symlink_to(path)
    return folder


def predict_logits(model, images):
    return model.predict(images, batch_size=50, verbose=0)


@pytest.mark.parametrize(
    ("depth", "num_correct"),
    [
        (20, None),
        pytest.param(20, 3992, marks=pytest.mark.slow),
        pytest.param(56, 4000, marks=pytest.mark.full),
    ],
)
def test_cifar_weights_have_published_logits_and_accuracy(depth, num_correct):
    folder = SHARED / "cifar10_weights"
    model = getattr(keras_resnet, f"ResNet{depth}")(
        weights=str(folder / f"resnet{depth}.npz"), classifier_activation=None
    )
    train_data = np.load(SHARED / "cifar10/cifar10_train_first4000.npz")
    reference_data = np.load(folder / f"resnet{depth}_oracle64_lossless.npz")
    logits = predict_logits(model, train_data["x"][: 4000 if num_correct else 64])
    assert np.abs(logits[:64] - reference_data["logits"]).max() <= 1e-4
    if num_correct:
        assert (logits.argmax(axis=1) == train_data["y"]).sum() == num_correct
    test_data = np.load(SHARED / "cifar10/cifar10_test200.npz")
    logits = predict_logits(model, test_data["x"])
    assert np.abs(logits - test_data[f"logits_resnet{depth}"]).max() <= 1e-4
    assert (logits.argmax(axis=1) == test_data["y"]).mean() == {20: 0.90, 56: 0.91}[
        depth
    ]


@pytest.mark.parametrize(
    ("depth", "reference_name", "num_images", "accuracy"),
    [
        (50, "50_large", 4, None),
        pytest.param(18, "18_small", 200, 0.77, marks=pytest.mark.slow),
        pytest.param(50, "50_large", 200, 0.79, marks=pytest.mark.slow),
    ],
)
def test_imagenet_weights_have_published_logits_and_accuracy(
    imagenet_weights, depth, reference_name, num_images, accuracy
):
    model = getattr(keras_resnet, f"ResNet{depth}")(
        weights=imagenet_weights / f"resnet{depth}.safetensors",
        classifier_activation=None,
    )
    cropped_data = np.load(SHARED / "imagenet/imagenet_crops200.npz")
    logits = predict_logits(model, cropped_data["x"][:num_images])
    expected_logits = np.load(
        SHARED / f"imagenet/ktb_resnet{reference_name}_oracle200.npz"
    )["logits"]
    assert np.abs(logits - expected_logits[:num_images]).max() <= 1e-4
    if accuracy:
        assert (logits.argmax(axis=1) == cropped_data["y"]).mean() == accuracy


@pytest.mark.parametrize(
    ("depth", "views", "top1", "top5", "loss"),
    [
        # Accuracies in percent and losses were measured with torchvision 0.29.1 and
        # Pillow 13. The transforms were Resize(256), followed by CenterCrop(224) or by
        # TenCrop of the central 256x256 pixels.
        (18, "single", 79, 92, 0.9918),
        pytest.param(50, "single", 74, 95, 0.8687, marks=pytest.mark.slow),
        pytest.param(18, "10crop", 78, None, None, marks=pytest.mark.full),
    ],
)
def test_accuracy_on_jpegs_is_that_of_torchvision(
    imagenet_weights, jpeg_folder, tmp_path, depth, views, top1, top5, loss
):
    """The accuracy on 100 JPEG files differs from torchvision's by at most one image.

    A difference is possible, because TensorFlow resizes images differently from Pillow.
    """
    metrics = evaluate(
        f"resnet{depth}",
        str(imagenet_weights / f"resnet{depth}.safetensors"),
        f"folder:{jpeg_folder}",
        views=views,
        batch_size=50,
        strategy="one_device",
        output=str(tmp_path),
    )
    assert metrics["images"] == 100
    assert abs(100 * metrics["accuracy"] - top1) <= 1
    if top5:
        assert abs(100 * metrics["top5_accuracy"] - top5) <= 1
        assert metrics["loss"] == pytest.approx(loss, abs=5e-3)


@pytest.mark.full
def test_multiscale_is_better_than_one_crop(imagenet_weights, jpeg_folder, tmp_path):
    """Multi-scale testing has a higher accuracy than one central crop.

    The paper has a similar result: the error of ResNet-34 is 24.52 % with 10 crops
    (Table 3) and 21.84 % with several scales (Table 4).
    """
    accuracies = {
        views: evaluate(
            "resnet18",
            str(imagenet_weights / "resnet18.safetensors"),
            f"folder:{jpeg_folder}",
            views=views,
            batch_size=50,
            output=str(tmp_path),
        )["accuracy"]
        for views in ("single", "multiscale")
    }
    assert accuracies["multiscale"] > accuracies["single"]


def test_predict_recognises_a_shark(imagenet_weights):
    image_path = str(SHARED / "imagenet/jpeg100/n01491361_tiger_shark.JPEG")
    weights_path = str(imagenet_weights / "resnet50.safetensors")
    ((name, probability), *_) = predict([image_path], "resnet50", weights_path)[
        image_path
    ]
    assert name == "tiger shark"
    assert probability > 0.9


@pytest.mark.slow
def test_frozen_imagenet_features_distinguish_cifar_classes(imagenet_weights, tmp_path):
    """A new head on frozen layers learns three classes from 40 images of each class.

    Random predictions would have an accuracy of 1/3. The images are from CIFAR-10 and
    are enlarged from 32x32 to 64x64 pixels.
    """
    from keras_resnet.training.run import train

    cifar_data = np.load(SHARED / "cifar10/cifar10_train_first4000.npz")
    for label, name in ((1, "automobile"), (5, "dog"), (8, "ship")):
        images = cifar_data["x"][cifar_data["y"] == label][:60]
        for i, image in enumerate(images):
            split_folder = pathlib.Path(
                tmp_path, "images", "train" if i < 40 else "test"
            )
            (split_folder / name).mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(
                split_folder / name / f"{i:02d}.png", image, scale=False
            )
    epoch_rows = train(
        "resnet18",
        f"folder:{tmp_path}/images",
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
    assert epoch_rows[-1]["val_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("num_images", "tolerance"),
    [(1000, 0.02), pytest.param(10_000, 3e-4, marks=pytest.mark.slow)],
)
def test_shipped_weights_have_the_accuracy_of_their_run_record(num_images, tolerance):
    """The accuracy on test images of Fashion-MNIST agrees with metrics.csv.

    The accuracy on all 10,000 images is above 93 %, like that of other published
    ResNets. The standard deviation of an accuracy of 94 % on 1,000 images is 0.75 %.
    """
    model = keras_resnet.ResNet20(weights="fashion_mnist")
    arrays = []
    for name, header_size in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(SHARED / f"fashion_mnist/t10k-{name}-ubyte.gz") as file:
            arrays.append(np.frombuffer(file.read(), np.uint8, offset=header_size))
    images, labels = arrays[0].reshape(-1, 28, 28, 1), arrays[1]
    predictions = predict_logits(model, images[:num_images]).argmax(1)
    accuracy = (predictions == labels[:num_images]).mean()
    folder = pathlib.Path(keras_resnet.__file__).parent / "weights/trained"
    csv_lines = (folder / "resnet20_fashion_mnist/metrics.csv").read_text().splitlines()
    columns = csv_lines[0].split(",")
    recorded_accuracy = float(csv_lines[-1].split(",")[columns.index("val_accuracy")])
    assert recorded_accuracy > 0.93
    assert accuracy == pytest.approx(recorded_accuracy, abs=tolerance)
