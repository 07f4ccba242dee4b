"""Blocks that are alike are traced, differentiated and lowered once.

A model of thirty equal blocks is thirty times the same program to Python: tracing and lowering it
is most of a start whose compiled program lies in the cache. Here equal blocks share one function
under `jit`, whose calls XLA inlines: what is compiled, and every number, is what it would be.
"""

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax import Array
from jax.core import Tracer

from sftjax.core.beside import Beside, joined, standing, within

Keys = dict[str, Array]
"""Of a block, by the names of linen's `rngs`."""

Place = tuple[str, int]
"""The path of a module below its block, and its how-manieth draw."""

_copied: ContextVar[set[str] | None] = ContextVar("copied", default=None)

_draws: ContextVar[Callable[[str], Array] | None] = ContextVar("draws", default=None)


def draw(module: nn.Module) -> Array:
    """Return the key of a bound module that draws: linen's own for its path in the whole model."""
    known = _draws.get()
    return module.make_rng("dropout") if known is None else known("/".join(module.path))


@contextmanager
def shapes_alone() -> Generator[set[str], None, None]:
    """Let a block that is initialized meanwhile take the leaves of one that is like it.

    For tracing: what is made has the right shapes, and of the blocks whose paths this gives (they
    are known at the end) not the right values.
    """
    copied: set[str] = set()
    token = _copied.set(copied)
    try:
        yield copied
    finally:
        _copied.reset(token)


class _Traced(NamedTuple):
    run: Callable[..., Any]
    drawing: tuple[Place, ...]
    """What draws, in its order."""
    stood: list[tuple[Beside, ...]]
    """What stood beside its modules, for each time it was traced."""


class Alike:
    """Calls blocks of one stack, so that those which are alike are traced once.

    Only while a program is traced, where no collection moves (a block that is initialized, or
    counts batch statistics, is called as it is), and where nobody looks on by an interceptor of
    linen's: it would see one block only. What `models.dropout` draws is what it draws in blocks
    that are called one by one; another module that draws has a key of its block's own.

    >>> class Stack(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         call = Alike()
    ...         for i in range(3):
    ...             x = call(nn.Dense(2, name=str(i)), x)
    ...         return x
    >>> x = jnp.ones((1, 2))
    >>> variables = Stack().init(jax.random.key(0), x)
    >>> program = jax.make_jaxpr(Stack().apply)(variables, x)
    >>> [str(eqn.params["name"]) for eqn in program.eqns if "name" in eqn.params]
    ['Dense', 'Dense', 'Dense']
    >>> len({id(eqn.params["jaxpr"]) for eqn in program.eqns if "name" in eqn.params})
    1
    """

    def __init__(self) -> None:
        # While a program is traced, what is made of nothing is no array yet.
        self._staged = isinstance(jnp.zeros(()), Tracer)
        self._traced: dict[Hashable, _Traced] = {}
        self._made: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, block: nn.Module, *inputs: Any) -> Any:
        """Return what a bound block gives for inputs by position: arrays, None, trees of them."""
        assert block.scope is not None
        there, copied = standing(), _copied.get()
        if copied is not None:
            return self._like_another(block, inputs, copied)
        if there is None or block.scope.mutable is not False or not self._staged:
            return block(*inputs)  # type: ignore[operator]
        path = "/".join(block.path)
        variables = block.variables
        given = tuple(one.given(path, variables.get("params", {})) for one in there)
        rngs = {name: LazyRng.create(rng) for name, rng in block.scope.rngs.items()}
        keys = {name: rng.as_jax_rng() for name, rng in rngs.items()}
        kind = (_settings(block), tuple(one.fixed(path) for one in there), tuple(keys))
        if kind not in self._traced:
            self._traced[kind] = _trace(block, path, there, (variables, given, keys, inputs))
        run, drawing, stood = self._traced[kind]
        outer = _draws.get()
        draws = [
            LazyRng.create(rngs["dropout"], *place.split("/"), number).as_jax_rng()
            if outer is None
            else outer(joined(path, place))
            for place, number in drawing
        ]
        with jax.named_scope(str(block.name)):
            output = run(variables, given, draws, keys, inputs)
        for inner in stood:
            for one, own in zip(there, inner, strict=True):
                one.left(path, own)
        return output

    def _like_another(self, block: Any, inputs: Any, copied: set[str]) -> Any:
        """Initialize a block, or give it the leaves and the output of one that is like it."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(inputs))
        kind = (_settings(block), jax.tree.structure(inputs), shapes)
        if kind not in self._made:
            output = block(*inputs)
            self._made[kind] = block.variables, output
            return output
        variables, output = self._made[kind]
        for collection, leaves in variables.items():
            for name, leaf in leaves.items():
                block.put_variable(collection, name, leaf)
        copied.add("/".join(block.path))
        return output


def _settings(block: nn.Module) -> Hashable:
    """Return what makes a block what it is, but for its place."""
    own = (field.name for field in fields(block))  # type: ignore[arg-type]
    return type(block), *(getattr(block, name) for name in own if name not in ("parent", "name"))


def _trace(
    block: Any, path: str, there: tuple[Beside, ...], seen: tuple[Any, Any, Keys, Any]
) -> _Traced:
    """Return the one function of all blocks that are like this one."""
    template = block.clone(parent=None, name=None)
    stood: list[tuple[Beside, ...]] = []

    def inside(
        known: Callable[[str], Array], variables: Any, given: Any, keys: Keys, inputs: Any
    ) -> Any:
        stood.append(tuple(one.within(path, own) for one, own in zip(there, given, strict=True)))
        with within(stood[-1]), _drawing(known):
            return template.apply(variables, *inputs, rngs=keys)

    def look(variables: Any, given: Any, keys: Keys, inputs: Any) -> Any:
        def found(below: str) -> Array:
            drawing.append((below, 1 + sum(below == other for other, _ in drawing)))
            return keys["dropout"]

        return inside(found, variables, given, keys, inputs)

    def run(variables: Any, given: Any, draws: list[Array], keys: Keys, inputs: Any) -> Any:
        left = list(zip(drawing, draws, strict=True))

        def known(below: str) -> Array:
            (place, _), own = left.pop(0)
            assert place == below, f"{path}: {below} draws where {place} did"
            return own

        return inside(known, variables, given, keys, inputs)

    drawing: list[Place] = []
    if "dropout" in block.scope.rngs:
        jax.eval_shape(look, *seen)
        stood.clear()
    run.__name__ = run.__qualname__ = type(block).__name__
    return _Traced(jax.jit(run), tuple(drawing), stood)


@contextmanager
def _drawing(known: Callable[[str], Array]) -> Generator[None, None, None]:
    token = _draws.set(known)
    try:
        yield
    finally:
        _draws.reset(token)
