"""How much of a device's arithmetic a step uses, where the device's peak is known."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

from sftjax.core import Batch, Fixed, TrainState
from sftjax.train.step import Step

PEAKS: dict[str, float] = {
    "NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12, "NVIDIA A10G": 70e12,
    "Tesla T4": 65e12, "Tesla V100": 125e12,
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip
"""Name of a device as jax has it (or how it begins) -> dense bfloat16 (float16) operations a
second, of the makers' data sheets; of TPU v2 and v3 for one core, which is jax's device."""

MEMORY: dict[str, float] = {
    "TPU v2": 8, "TPU v3": 16, "TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32,
}  # fmt: skip
"""GiB of each, of the same sheets; its programs take about a quarter of one for themselves."""


def peak_flops(kind: str) -> float | None:
    """Return the peak of a device by its `device_kind`; None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
    (989000000000000.0, 197000000000000.0, None)
    """
    return _of_kind(PEAKS, kind)


def memory_of(kind: str) -> int | None:
    """Return the bytes that a TPU has by its `device_kind`; None where it is not known.

    >>> memory_of("TPU v5 lite"), memory_of("cpu")
    (17179869184, None)
    """
    size = _of_kind(MEMORY, kind)
    return None if size is None else int(size * 2**30)


def _of_kind(table: dict[str, float], kind: str) -> float | None:
    fitting = [name for name in table if kind.startswith(name)]
    return table[max(fitting, key=len)] if fitting else None


def step_flops(step: Step, state: TrainState, fixed: Fixed, batch: Batch) -> float | None:
    """Return the operations of the products in one update, of all devices together.

    Matrix products and convolutions are counted as the step is traced: what is computed again
    (remat) counts again, the body of a loop as often as it runs where that is known, and what the
    compiler leaves out counts. Fused kernels (cuDNN's attention, splash) count nothing.

    Args:
      step: a compiled step (`compile_step`).
      state: of arrays or shapes; not donated here.
      fixed: what does not move.
      batch: one batch.

    Returns:
      The number; None for a function that `jit` did not make.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(lambda state, fixed, batch: batch["x"] @ batch["x"])
    >>> step_flops(step, None, None, {"x": jnp.ones((8, 8))})
    1024.0
    """
    if hasattr(step, "jitted"):  # of a mesh
        step = step.jitted(state, fixed)  # type: ignore[attr-defined]
    if not hasattr(step, "trace"):
        return None
    return _products(step.trace(state, fixed, batch).jaxpr)  # type: ignore[attr-defined]


def _products(jaxpr: Any) -> float:
    """Return the operations of a program's products."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, how = equation.primitive.name, equation.params
        if name == "dot_general":
            (summed, _), _ = how["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in summed)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            each = kernel.size / kernel.shape[how["dimension_numbers"].rhs_spec[0]]
            # Of the zeros that a stride's gradient spreads its input with, nothing is computed.
            total += 2.0 * equation.outvars[0].aval.size * each / math.prod(how["lhs_dilation"])
        elif name == "cond":
            total += max(_products(branch) for branch in how["branches"])
        elif name != "pallas_call":
            # Inside `shard_map` shapes are those of one device.
            times = how["mesh"].size if name == "shard_map" else how.get("length", 1)
            total += times * sum(_products(inner) for inner in _programs(how))
    return total


def _programs(how: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the programs among an operation's parameters."""
    for value in how.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, (ClosedJaxpr, Jaxpr)):
                yield each
