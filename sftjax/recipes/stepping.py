"""A method's step: compiled, guarded against what is not finite, and explained where it is."""

import optax

from sftjax.models import TENSOR_RULES
from sftjax.recipes.methods import Method
from sftjax.train import (
    Diagnose,
    OnNan,
    Step,
    chosen_mesh,
    compile_step,
    diagnosis,
    guard,
    make_step,
)


def compiled(
    method: Method, tx: optax.GradientTransformation, accumulate: int, on_nan: OnNan = "stop"
) -> Step:
    """Return the compiled step of a method under an optimizer (its own, or a phase's of it)."""
    step = make_step(method.objective, tx, accumulate=accumulate, view=method.view)
    return compile_step(guard(method.wrap(step), on_nan), chosen_mesh(), TENSOR_RULES)


def diagnosing(method: Method, accumulate: int) -> Diagnose:
    """Return what says where a number of a method's update is not finite."""
    bare = make_step(method.objective, optax.identity(), accumulate=accumulate, view=method.view)
    return diagnosis(method.wrap(bare))
