"""Where the time to the first update goes, and a compile cache that outlives the process."""

import contextlib
import functools
import os
import pathlib
import threading
import time
from collections.abc import Generator
from typing import NamedTuple

import jax

from sftjax.data import cache_folder
from sftjax.recipes.compiled_programs import remove_torn

_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


MEASURING = "measuring what it could before"
"""The part of a command that asks the pretrained model first."""


class _Clock(NamedTuple):
    began: float
    """`time.monotonic()` of the start of the process."""
    parts: dict[str, float]


_clocks: list[_Clock] = []
"""The clock of a command, from its beginning to its first update."""


def keep_compiled() -> None:
    """Keep compiled programs in the cache folder, unless jax was told of another place.

    The environment variable JAX_COMPILATION_CACHE_DIR, or `jax.config`, says of which; an empty
    one keeps nothing. Those that were not written whole (`remove_torn`) are compiled again.
    """
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not told:
        told = str(cache_folder() / "xla")
        jax.config.update("jax_compilation_cache_dir", told)
        # A start makes some fifty small programs beside the large ones; anew they take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if told:
        remove_torn(pathlib.Path(told))


def begin() -> None:
    """Start the clock of a command: all time since the process began was spent importing."""
    age = 0.0 if _listening.cache_info().currsize else _age()  # a second command of one process
    _listening()
    _clocks[:] = [_Clock(time.monotonic() - age, {"import": age})]


@contextlib.contextmanager
def part(name: str) -> Generator[None, None, None]:
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
    """Return where the time until now went, and stop the clock; "" if none goes.

    A command of several runs says it of its first: the others start within it.

    >>> _clocks.clear(); told()
    ''
    """
    if not _clocks:
        return ""
    clock = _clocks.pop()
    total = time.monotonic() - clock.began
    parts = dict.fromkeys(("import", "load", "compile"), 0.0) | clock.parts
    parts["data and the rest"] = max(total - sum(parts.values()), 0.0)
    said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
    return f"first update after {total:.1f} s: {said}"


@functools.cache
def _listening() -> None:
    """Hear of what jax compiles, from the process's first command on."""
    jax.monitoring.register_event_duration_secs_listener(_heard)


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    # What a thread compiles costs no time of its own, until somebody waits for it.
    here = threading.current_thread() is threading.main_thread()
    if event in _COMPILING and _clocks and here:
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
