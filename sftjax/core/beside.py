"""What stands beside a model's linen modules and meets each of them as it is called.

Linen's interceptors know a module by its path in the whole model. Blocks that are alike are traced
once for all of them (`models.alike`); inside, a path begins at the block, and arrays from outside
must come as arguments. What stands beside says here which arrays a block needs, and gives another
to stand inside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
from flax.linen import module as linen

from sftjax.core.state import PyTree


class Beside(ABC):
    """Stands beside modules, and may give something in place of what they would."""

    @abstractmethod
    def meet(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Return what a method of a module gives, as an interceptor of `nn.intercept_methods`."""

    def fixed(self, path: str) -> Hashable:
        """Return what it does below a path, but for arrays; equal for blocks that are alike."""
        del path

    @abstractmethod
    def given(self, path: str, params: PyTree) -> PyTree:
        """Return the arrays that it reads below a path, where the model's own are `params`."""

    @abstractmethod
    def within(self, path: str, given: PyTree) -> "Beside":
        """Return what stands inside a block in its place: paths begin there."""

    def left(self, path: str, inner: Any) -> None:
        """Hear that a block was called, with `inner` standing (or having stood, when traced)."""
        del path, inner


class Outside(Beside):
    """Meets the modules that lie in no block, by an interceptor of linen's.

    >>> def doubled(run, args, kwargs, context):
    ...     return 2 * run(*args, **kwargs)
    >>> with beside(Outside(doubled)):
    ...     print(nn.Dropout(0.0, deterministic=True).apply({}, 1.0))
    2.0
    """

    def __init__(self, interceptor: Callable[..., Any]) -> None:
        self._interceptor = interceptor

    def meet(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Return what the interceptor gives."""
        return self._interceptor(run, args, kwargs, context)

    def given(self, path: str, params: PyTree) -> PyTree:
        """Return nothing: in a block it has nothing to do."""
        del path, params

    def within(self, path: str, given: PyTree) -> Beside:
        """Return what leaves a block's modules as they are."""
        del path, given
        return Outside(lambda run, args, kwargs, _: run(*args, **kwargs))


_standing: ContextVar[tuple[Beside, ...]] = ContextVar("standing", default=())


@contextmanager
def beside(one: Beside) -> Generator[None, None, None]:
    """Let one stand beside the modules that are called meanwhile, nearer than those before."""
    outer = _standing.get()
    place = len(outer)

    def intercept(
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        return _standing.get()[place].meet(run, args, kwargs, context)

    token = _standing.set((*outer, one))
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _standing.reset(token)


@contextmanager
def within(inner: Sequence[Beside]) -> Generator[None, None, None]:
    """Let these stand in the place of those that stand, in their order."""
    token = _standing.set(tuple(inner))
    try:
        yield
    finally:
        _standing.reset(token)


def below(path: str, other: str) -> str | None:
    """Return the rest of a path below another; "" if they are equal, None if it is elsewhere.

    >>> below("layer/1", "layer/1/query"), below("layer/1", "layer/1"), below("layer/1", "layer/10")
    ('query', '', None)
    """
    if path == other:
        return ""
    return other.removeprefix(f"{path}/") if other.startswith(f"{path}/") else None


def joined(path: str, rest: str) -> str:
    """Return a path and the rest below it in one.

    >>> joined("layer/1", "query"), joined("layer/1", ""), joined("", "query")
    ('layer/1/query', 'layer/1', 'query')
    """
    return "/".join(filter(None, (path, rest)))


def standing() -> tuple[Beside, ...] | None:
    """Return all that stand, in their order; None if an interceptor of somebody else does too.

    >>> standing()
    ()
    >>> with nn.intercept_methods(lambda run, args, kwargs, context: run(*args, **kwargs)):
    ...     print(standing())
    None
    """
    ours = _standing.get()
    # Linen has no public way to ask; where it keeps them elsewhere, somebody may always stand.
    all_of_them = getattr(linen, "_global_interceptor_stack", None)
    return ours if all_of_them is not None and len(list(all_of_them)) == len(ours) else None
