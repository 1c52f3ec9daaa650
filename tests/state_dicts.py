"""Random state dicts and images, with the same bits on every machine.

tests/make_torch_logits.py loads the state dicts into PyTorch networks and stores the
logits. The tests load the same state dicts into the networks of this package.
"""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


def make_arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    """Returns a random array for every key. The key and the shape determine the array.

    Args:
        shapes: Dict from keys of a PyTorch state dict to shapes of arrays.

    Returns:
        Dict from keys to float32 arrays, whose scale keeps the activations of deep
        networks finite. Counters of training batches are int64 zeros.

    Raises:
        ValueError: If a key with its shape does not occur in ResNets.
    """
    return {key: _make_array(key, tuple(shape)) for key, shape in shapes.items()}


def _make_array(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    match key.rpartition(".")[2], len(shape):
        case "num_batches_tracked", 0:
            return np.zeros((), np.int64)
        case "running_var", 1:
            array = rng.uniform(0.5, 1.5, shape)
        case "running_mean" | "bias", 1:
            array = 0.1 * rng.standard_normal(shape)
        case "weight", 1:  # Scale of a batch normalisation.
            array = rng.uniform(0.4, 0.8, shape)
        case "weight", 2 | 4 as rank:
            gain = 2 if rank == 4 else 1
            array = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        case _:
            raise ValueError(
                f"The key must be in a ResNet. Received: {key} of shape {shape}"
            )
    return array.astype(np.float32)


def make_images(num_images: int, size: int) -> np.ndarray:
    """Returns random uint8 images of shape (num_images, size, size, 3)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)


def hash_shapes(shapes: Shapes) -> str:
    """Returns the SHA-256 hash of keys and shapes, except for counters of batches."""
    lines = sorted(
        f"{key} {tuple(shape)}"
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
