"""State dicts and images that any program with NumPy makes again, bit for bit.

The tests load such a state dict into our nets; tests/make_torch_logits.py loads it
into PyTorch's, and stores the logits that these give.
"""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


def fill(shapes: Shapes) -> dict[str, np.ndarray]:
    """Makes an array for every key: of that key and its shape alone, in any order.

    Args:
        shapes: The keys of a PyTorch state dict, and their shapes.

    Returns:
        Arrays in float32, of a scale that keeps the activations of deep nets finite.

    Raises:
        ValueError: A key or a shape is none that a ResNet has.
    """
    return {key: _fill(key, tuple(shape)) for key, shape in shapes.items()}


def _fill(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    match key.rpartition(".")[2], len(shape):
        case "num_batches_tracked", 0:
            return np.zeros((), np.int64)
        case "running_var", 1:
            array = rng.uniform(0.5, 1.5, shape)
        case "running_mean" | "bias", 1:
            array = 0.1 * rng.standard_normal(shape)
        case "weight", 1:  # the scale of a batch norm
            array = rng.uniform(0.4, 0.8, shape)
        case "weight", 2 | 4 as rank:
            gain = 2 if rank == 4 else 1
            array = rng.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        case _:
            raise ValueError(f"No rule for {key} of shape {shape}")
    return array.astype(np.float32)


def pixels(number: int, size: int) -> np.ndarray:
    """Makes square uint8 images of noise, of shape (number, size, size, 3)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def digest(shapes: Shapes) -> str:
    """Hashes the keys and shapes, but for the counters that inference ignores."""
    lines = sorted(
        f"{key} {tuple(shape)}"
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
