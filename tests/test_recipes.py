import pytest

from keras_resnet.errors import InputError
from keras_resnet.recipes import default_recipe, find_recipe


def test_the_papers_cifar_recipe():
    """Section 4.2: 64k iterations of 128 on 50,000 images."""
    recipe = find_recipe("paper_cifar")
    assert (recipe.batch_size, recipe.learning_rate) == (128, 0.1)
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 1e-4)
    assert recipe.pad * 32 == 4
    assert recipe.flip
    assert round(64_000 * 128 / 50_000) == recipe.epochs


def test_changes():
    recipe = find_recipe("digits", epochs=3, batch_size=None)
    assert recipe.epochs == 3
    assert recipe.batch_size == find_recipe("digits").batch_size


def test_digits_are_not_mirrored():
    assert not find_recipe(default_recipe("digits", photographs=False)).flip
    assert find_recipe(default_recipe("cifar10", photographs=False)).flip
    assert find_recipe(default_recipe("folder:pets", photographs=True)).flip


def test_errors():
    with pytest.raises(InputError, match="Did you mean 'paper_cifar'"):
        find_recipe("paper_cifer")
    with pytest.raises(InputError, match="Received: learning_rate=0"):
        find_recipe("digits", learning_rate=0)
