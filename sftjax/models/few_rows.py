"""Products of few rows with matrices, as a CPU does them best.

A step of generation multiplies as many rows as there are texts. XLA's product on a CPU lays the
matrix out anew for each of them, unless there is one: 16 rows take longer than 64. It need not if
the matrix is (N, K) in memory, as torch keeps it, and the result (N, R): 2 to 32 rows are then two
to three times as fast, 64 as fast, more not.
"""

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from sftjax.core import Batch, PyTree, flatten
from sftjax.core.beside import Beside, beside, joined
from sftjax.core.paths import path_of
from sftjax.core.target import platform
from sftjax.models.decoding import Cache, Decoder

FEW = 64
"""More rows than these gain nothing."""

Turned = Sequence[Array | None]
"""For each leaf of params its transpose, (N, K), or None."""


def pays(rows: int) -> bool:
    """Tell whether a product of so many rows is quicker this way on what is compiled for.

    >>> pays(1), pays(FEW + 1)
    (False, False)
    """
    return platform() == "cpu" and 1 < rows <= FEW


def ever_pays(rows: int) -> bool:
    """Tell whether it pays for some step of so many rows at the start; there are fewer later."""
    return platform() == "cpu" and rows > 1


def times(x_RK: Array, w_NK: Array) -> Array:
    """Return `x @ w.T`, (R, N) float32, of a matrix whose rows are the outputs'.

    >>> times(jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[11.0], [4.0]]
    """

    def product(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(
            a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    if pays(len(x_RK)) and x_RK.dtype == w_NK.dtype == jnp.float32:
        # Without the barrier XLA turns the product round again.
        return jax.lax.optimization_barrier(product(w_NK, x_RK)).T
    return product(x_RK, w_NK)


def turned(params: PyTree, read_once: str | None) -> list[Array | None]:
    """Return the transposes of the float32 kernels that steps read.

    Args:
      params: of a model of linen modules; what is no matrix called `kernel` is left out.
      read_once: the path of what no step reads.

    >>> params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> [None if x is None else x.shape for x in turned(params, None)]
    [None, (3, 2)]
    """

    def of(path: str, leaf: Any) -> Array | None:
        once = read_once is not None and path.startswith(f"{read_once}/")
        if once or not path.endswith("/kernel") or jnp.ndim(leaf) != 2:
            return None
        return jnp.asarray(leaf).T if jnp.result_type(leaf) == jnp.float32 else None

    return [of(path_of(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(params)]


def with_turned(decoder: Decoder, params: PyTree, kernels: Turned | None) -> Decoder:
    """Return the decoder that multiplies few rows by these transposes, where that is quicker.

    Args:
      decoder: whose functions run linen modules on `params` themselves; others stay as they were.
      params: the ones that it will be given.
      kernels: what `turned` made of them; None leaves the decoder as it is.
    """
    if kernels is None:
        return decoder

    def start(given: PyTree, batch: Batch, new_tokens: int) -> tuple[Array, Cache]:
        with _reading(params, kernels):
            return decoder.start(given, batch, new_tokens)

    def step(given: PyTree, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        with _reading(params, kernels):
            return decoder.step(given, tokens, cache)

    return decoder._replace(start=start, step=step)


@contextmanager
def _reading(params: PyTree, kernels: Turned) -> Generator[None, None, None]:
    """Let the Dense layers that are called meanwhile find the transposes of their kernels."""
    leaves = jax.tree.leaves(params)
    known = {
        id(leaf): kernel for leaf, kernel in zip(leaves, kernels, strict=True) if kernel is not None
    }
    with beside(_Reading(lambda path, leaf: known.get(id(leaf)))):
        yield


@dataclass(frozen=True)
class _Reading(Beside):
    """Lets Dense layers of few rows read transposes."""

    find: Callable[[str, Array], Array | None]
    """The transpose of the kernel at a path, if it is known."""

    def meet(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        module = context.module
        if type(module) is not nn.Dense or context.method_name != "__call__" or len(args) != 1:
            return run(*args, **kwargs)
        (x,), own = args, module.variables["params"]
        kernel = self.find("/".join((*module.path, "kernel")), own["kernel"])
        rows = x.size // x.shape[-1]
        if kernel is None or x.dtype != jnp.float32 or not pays(rows):
            return run(*args, **kwargs)
        y = times(x.reshape(rows, -1), kernel).reshape(*x.shape[:-1], -1)
        return (y + own["bias"] if module.use_bias else y).astype(module.dtype or y.dtype)

    def given(self, path: str, params: PyTree) -> PyTree:
        found = {
            place: self.find(joined(path, place), leaf) for place, leaf in flatten(params).items()
        }
        return {place: kernel for place, kernel in found.items() if kernel is not None}

    def within(self, path: str, given: PyTree) -> "_Reading":
        del path
        return _Reading(lambda place, leaf: given.get(place))


def _stays(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)


_turned = jax.jit(turned, static_argnums=1)


class LastTurned:
    """The transposes of the params that were seen last.

    An array of jax does not change, so the same ones need not be transposed again; once one of them
    is gone, so are the transposes.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._read_once = decoder.read_once
        self._seen: list[weakref.ref[Array]] = []
        self._turned: Turned = ()

    def of(self, params: PyTree, rows: int) -> Turned | None:
        """Return the transposes for steps of so many rows at the start; None if none pay."""
        if not ever_pays(rows):
            return None
        leaves = jax.tree.leaves(params)
        if not all(map(_stays, leaves)):
            return _turned(params, self._read_once)
        known = len(leaves) == len(self._seen) and all(
            seen() is leaf for seen, leaf in zip(self._seen, leaves, strict=True)
        )
        if not known:
            self._turned = _turned(params, self._read_once)
            self._seen = [weakref.ref(leaf, self._forget) for leaf in leaves]
        return self._turned

    def _forget(self, _: object) -> None:
        self._seen, self._turned = [], ()
