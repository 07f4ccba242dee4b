"""How much of a device's arithmetic a step uses, where the device's peak is known."""

from sftjax.core import Batch, Fixed, TrainState
from sftjax.train.step import Step

PEAKS = {
    "NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12, "NVIDIA L4": 121e12, "NVIDIA L40S": 362e12, "NVIDIA A10G": 70e12,
    "Tesla T4": 65e12, "Tesla V100": 125e12,
    "TPU v2": 22.5e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
    "TPU v5": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip
"""Name of a device as jax has it (or how it begins) -> dense bfloat16 (float16) operations a
second, of the makers' data sheets; of TPU v2 and v3 for one core, which is jax's device."""


def peak_flops(kind: str) -> float | None:
    """Return the peak of a device by its `device_kind`; None where it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
    (989000000000000.0, 197000000000000.0, None)
    """
    fitting = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(fitting, key=len)] if fitting else None


def step_flops(step: Step, state: TrainState, fixed: Fixed, batch: Batch) -> float | None:
    """Return the operations of one update by XLA's own count, before it compiles.

    Loops count once, and Pallas kernels (cuDNN's attention too) not at all: it is a lower bound.

    Args:
      step: a compiled step (`compile_step`).
      state: of arrays or shapes; not donated here.
      fixed: what does not move.
      batch: one batch.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(lambda state, fixed, batch: batch["x"] @ batch["x"])
    >>> step_flops(step, None, None, {"x": jnp.ones((8, 8))})
    1024.0
    """
    lower = getattr(step, "lower", None)
    if lower is None:
        return None
    found = lower(state, fixed, batch).cost_analysis()
    flops = (found or {}).get("flops")
    return None if flops is None else float(flops)
