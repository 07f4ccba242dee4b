"""Levels of the tree without a class for each: checkpoints of images nest their names deeply."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


class Level(nn.Module):
    """A module that is only a name over what its body makes."""

    body: Callable[..., Any]

    @nn.compact
    def __call__(self, *args: Any) -> Any:
        """Run the body; the modules that it makes are this one's children."""
        return self.body(*args)


def at(path: str, body: Callable[..., Any], *args: Any) -> Any:
    """Run `body(*args)` so that the modules it makes lie at `path`; for compact modules.

    A name can be entered once: a loop over siblings goes into the body of their parent.

    >>> import jax, jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return at("encoder/0", lambda x: nn.Dense(2, name="dense")(x), x)
    >>> jax.tree.map(jnp.shape, Net().init(jax.random.key(0), jnp.ones((1, 3)))["params"])
    {'encoder': {'0': {'dense': {'bias': (2,), 'kernel': (3, 2)}}}}
    """
    first, _, rest = path.partition("/")
    if not rest:
        return Level(body, name=first)(*args)
    return Level(lambda *inner: at(rest, body, *inner), name=first)(*args)
