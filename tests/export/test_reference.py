"""Test images, images of check.npz, and the choice of calibration images."""

import dataclasses

import keras
import numpy as np
import pytest

from export import reference
from export.options import ExportOptions
from keras_resnet.support.errors import InputError


@pytest.mark.parametrize(
    ("name", "share_images", "is_shared"),
    [("digits", False, True), ("mine", True, True), ("mine", False, False)],
)
def test_only_images_with_a_free_licence_are_published(
    digits, classifier, name, share_images, is_shared
):
    """Without permission to share them, check.npz has patterns instead of images."""
    dataset = dataclasses.replace(digits, name=name)
    check = reference.get_reference(dataset, 40, classifier, share_images).check
    assert len(check["image"]) == 40
    test_images = {image.tobytes() for image in digits.test.images}
    check_images = {image.tobytes() for image in check["image"]}
    assert bool(test_images & check_images) == ("label" in check) == is_shared
    expected = classifier.model(check["image"])
    np.testing.assert_allclose(check["probability"], expected, atol=1e-5)
    if not is_shared:
        # Errors of 5 % of the largest logit, as in int8, do not change predictions.
        runner_up, highest = np.sort(np.log(check["probability"]), axis=1)[:, -2:].T
        assert (highest - runner_up > 0.1 * check["largest_logit"]).all()


@pytest.fixture(scope="module")
def choose(digits, classifier):
    """Returns a function that chooses calibration images from a dataset.

    The images are not among the test images of `digits`.
    """
    test_reference = reference.get_reference(digits, 360, classifier, False)

    def choose(dataset, **options):
        return reference.choose_calibration(
            ExportOptions(**options), dataset, classifier.preprocessing, test_reference
        )

    return choose


def test_calibration_excludes_test_images(digits, choose):
    """The training images of this dataset include all test images."""
    mixed_digits = dataclasses.replace(
        digits, name="mixed", train=digits.test + digits.train.take(np.arange(100))
    )
    images, description = choose(mixed_digits, seed=3)
    indices = description["images"]
    assert min(indices) >= 360
    np.testing.assert_array_equal(
        images, digits.train.images[np.subtract(indices, 360)]
    )
    assert description["left_out_as_evaluated"] > 100
    assert len(indices) + description["left_out_as_evaluated"] == 200
    assert (description["dataset"], description["of"]) == ("mixed", 460)
    leaked_digits = dataclasses.replace(digits, train=digits.test)
    with pytest.raises(InputError, match="calibration images are test images"):
        choose(leaked_digits)


def test_calibration_is_seeded(digits, choose):
    indices = [choose(digits, seed=seed)[1]["images"] for seed in (0, 0, 1)]
    assert indices[0] == indices[1] != indices[2]
    assert indices[0] == sorted(set(indices[0]))


def test_missing_calibration_images_are_named(digits, choose, tmp_path):
    digits_without_training = dataclasses.replace(
        digits, train=digits.train.take(np.arange(0))
    )
    with pytest.raises(
        InputError, match=r"calibration images.*folder:PATH.*digits, which"
    ):
        choose(digits_without_training)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"Received: folder:.*nothing, which has none"):
        choose(digits, calibration=f"folder:{tmp_path}/nothing")


def test_damaged_calibration_images_are_named(digits, choose, tmp_path):
    for i, image in enumerate(digits.train.images[:2]):
        keras.utils.save_img(tmp_path / f"{i}.png", image, scale=False)
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:50])
    with pytest.raises(InputError, match=r"broken\.png"):
        choose(digits, calibration=f"folder:{tmp_path}")
    _, description = choose(digits, calibration="digits")
    assert (description["dataset"], description["of"]) == ("digits", 1437)
