"""Where the time to the first update goes, and a compile cache that outlives the process."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax

from sftjax.data import cache_folder

_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class _Clock(NamedTuple):
    began: float
    """`time.monotonic()` of the start of the process."""
    parts: dict[str, float]


_clocks: list[_Clock] = []
"""The process's clock, once a command has begun; a process starts only once."""


def keep_compiled() -> None:
    """Keep compiled programs in the cache folder, unless jax was told of another place.

    The environment variable JAX_COMPILATION_CACHE_DIR, or `jax.config`, says of which; an empty
    one keeps nothing.
    """
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or told:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    # A start makes some fifty small programs beside the large ones; anew they take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def begin() -> None:
    """Start the clock of a command: all time since the process began was spent importing."""
    now = time.monotonic()
    age = _age()
    if not _clocks:
        jax.monitoring.register_event_duration_secs_listener(_heard)
        _clocks.append(_Clock(now - age, {"import": age}))
        return
    _clocks[0] = _Clock(now, {"import": 0.0})  # a second command of the same process


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Count the time of a block as a part of the start-up, without what it compiles.

    >>> with part("load"):
    ...     pass
    """
    if not _clocks:
        yield
        return
    parts = _clocks[0].parts
    began, compiling = time.monotonic(), parts.get("compile", 0.0)
    try:
        yield
    finally:
        spent = time.monotonic() - began - (parts.get("compile", 0.0) - compiling)
        parts[name] = parts.get(name, 0.0) + max(spent, 0.0)


def told() -> str:
    """Return where the time until now went, "" if no command has begun.

    >>> _clocks.clear(); told()
    ''
    """
    if not _clocks:
        return ""
    total = time.monotonic() - _clocks[0].began
    parts = {name: _clocks[0].parts.get(name, 0.0) for name in ("import", "load", "compile")}
    parts["data and the rest"] = max(total - sum(parts.values()), 0.0)
    said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
    return f"first update after {total:.1f} s: {said}"


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event in _COMPILING and _clocks:
        parts = _clocks[0].parts
        parts["compile"] = parts.get("compile", 0.0) + duration_secs


def _age() -> float:
    """Seconds since the process began; 0 where the system does not say."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, AttributeError, IndexError, ValueError):
        return 0.0
