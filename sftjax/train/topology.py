"""TPUs that are not here: their compiler is a package, and compiles on any machine."""

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from sftjax.core import compiling_for

_SETTINGS = {  # before jax looks for its devices, or the compiler complains of them
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks a server that answers on a TPU's host alone
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of the host, whatever the slice
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # one program at a time holds a TPU; here is none to hold
}


@contextmanager
def on_topology(name: str) -> Generator[list[Any], None, None]:
    """Compile what is traced inside for the chips of a TPU slice, where it cannot be run.

    Programs are lowered from shapes and compiled ahead of time, as in `compile_step(step, mesh)
    .lower(state, fixed, batch).compile()`, with a mesh of these chips (`make_mesh` takes them by
    itself). Attention and losses choose as they will on the chips.

    Args:
      name: generation and shape, as `v5e:1x1`, `v5e:2x4`, `v6e:2x2` or `v5p:2x2x1`.

    Yields:
      The chips, as jax's devices.

    Raises:
      ValueError: if the compiler is not installed, or knows no such slice.

    References:
      ahead-of-time compilation: https://docs.jax.dev/en/latest/aot.html
    """
    chips = _chips(name)
    cached: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    # A program for devices that are not here can be kept on disk, but not be read again.
    _use_cache(False)
    try:
        with compiling_for(chips):
            yield chips
    finally:
        _use_cache(cached)


def _use_cache(on: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # it asks the setting once


def _chips(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"{name} needs the TPU's compiler, which runs without a TPU: "
            f'pip install "jax[tpu]=={jax.__version__}"'
        )
    for setting, value in _SETTINGS.items():
        # On a TPU's host they are set; elsewhere the package itself puts a warning into some.
        if os.environ.get(setting, "WARNING").startswith("WARNING"):
            os.environ[setting] = value
    from jax.experimental import topologies

    # By itself the compiler counts four chips a host, and finds no host for one.
    alone = set(name.partition(":")[2].split("x")) == {"1"}
    how = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **how)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the TPU's compiler knows no {name!r}: {str(error).splitlines()[0]}; write a "
            "generation and a shape, as v5e:2x4"
        ) from error
    return list(found.devices)
