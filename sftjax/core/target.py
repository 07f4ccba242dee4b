"""What is compiled for: the devices of this process, or others that are not here.

A function may be traced for a TPU on a machine that has none (`sftjax plan --topology`). Whatever
chooses by the device while it is traced asks here, not jax.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_devices: ContextVar[tuple[Any, ...]] = ContextVar("devices", default=())


@contextmanager
def compiling_for(devices: Sequence[Any]) -> Generator[None, None, None]:
    """Let what is traced inside choose for these devices, such as those of a topology.

    >>> with compiling_for(jax.devices()[:1]):
    ...     len(target_devices())
    1
    """
    token = _devices.set(tuple(devices))
    try:
        yield
    finally:
        _devices.reset(token)


def target_devices() -> list[Any]:
    """Return the devices that are compiled for."""
    return list(_devices.get() or jax.devices())


def platform() -> str:
    """Return what they are: cpu, gpu or tpu.

    >>> platform() == jax.default_backend()
    True
    """
    there = _devices.get()
    return there[0].platform if there else jax.default_backend()
