"""A method's step: compiled, guarded against what is not finite, and explained where it is."""

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optax

from sftjax.core import Batch, Fixed, TrainState, platform
from sftjax.models import TENSOR_RULES
from sftjax.recipes.methods import Method
from sftjax.recipes.startup import part
from sftjax.train import (
    Diagnose,
    OnNan,
    Step,
    chosen_mesh,
    compile_step,
    diagnosis,
    guard,
    make_step,
    pinned,
)


def compiled(
    method: Method, tx: optax.GradientTransformation, accumulate: int, on_nan: OnNan = "stop"
) -> Step:
    """Return the compiled step of a method under an optimizer (its own, or a phase's of it)."""
    step = make_step(method.objective, tx, accumulate=accumulate, view=method.view)
    return compile_step(guard(method.wrap(step), on_nan), chosen_mesh(), TENSOR_RULES)


def compiled_while(
    work: Callable[[], None], step: Any, state: TrainState, fixed: Fixed, batch: Batch
) -> None:
    """Do some work while a thread compiles a step, whose first call then finds it compiled.

    Where compiling tries kernels out (on a GPU) the work would spoil their times, so that there it
    is done alone, and the step compiles at its first call.

    Args:
      work: such as measuring the model as it came.
      step: compiled, or what surrounds it, with its `lower`.
      state, fixed, batch: what `fit` will begin with; the batch lies where its batches will.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(lambda state, fixed, batch: (state + batch, {}))
    >>> compiled_while(lambda: print("measured"), step, jnp.ones(2), None, jnp.ones(2))
    measured
    """
    if platform() == "gpu":
        work()
        return
    here = contextvars.copy_context()

    def ahead() -> None:
        step.lower(pinned(state), fixed, batch).compile()

    with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(here.run, ahead)
        work()
        with part("compile"):
            compiling.result()


def diagnosing(method: Method, accumulate: int) -> Diagnose:
    """Return what says where a number of a method's update is not finite."""
    bare = make_step(method.objective, optax.identity(), accumulate=accumulate, view=method.view)
    return diagnosis(method.wrap(bare))
