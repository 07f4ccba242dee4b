"""Weights that anyone can draw again, by layer, for Keras' networks."""

import hashlib

import numpy as np


def drawn(layer: str, shapes: list[list[int]]) -> list[np.ndarray]:
    """Return a layer's arrays, in Keras' order, drawn from its name."""
    seed = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    if len(shapes) == 4:  # scale, bias, mean and variance of a batch norm
        scale, bias, mean = (rng.normal(0, 0.1, shapes[0]) for _ in range(3))
        arrays = [1 + scale, bias, mean, rng.uniform(0.5, 1.5, shapes[0])]
    else:
        kernel, *biases = shapes
        fan_in = max(int(np.prod(kernel[:-1])), 1) if kernel[-1] > 1 else kernel[0] * kernel[1]
        arrays = [rng.normal(0, (2 / fan_in) ** 0.5, kernel)]
        arrays += [rng.normal(0, 0.1, shape) for shape in biases]
    return [array.astype(np.float32) for array in arrays]


def pixels() -> np.ndarray:
    """Return two pictures of 64 x 64, RGB, 0 to 255."""
    return np.random.default_rng(7).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
