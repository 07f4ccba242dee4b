"""TPUs that are not here: their compiler is a package, and compiles on any machine."""

import importlib.util
import os
from typing import Any

import jax


def topology_devices(name: str) -> list[Any]:
    """Return the chips of a TPU slice that programs can be compiled for, though not run.

    Args:
      name: generation and shape, as `v5e:2x4`, `v6e:2x2` or `v5p:2x2x1`.

    Raises:
      ValueError: if the compiler is not installed, or knows no such slice.

    References:
      ahead-of-time compilation: https://docs.jax.dev/en/latest/aot.html
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"{name} needs the TPU's compiler, which runs without a TPU: "
            f'pip install "jax[tpu]=={jax.__version__}"'
        )
    # Else it asks Google's metadata server, which answers on a TPU's host alone.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the TPU's compiler knows no {name!r}: {str(error).splitlines()[0]}; write a "
            "generation and a shape, as v5e:2x4"
        ) from error
    return list(found.devices)
