"""Which leaf an array of an optimizer's state belongs to, and which counters tell its age."""

from collections.abc import Collection

from sftjax.core.paths import PyTree, flatten


def owner_of(where: str, paths: Collection[str]) -> str:
    """Return the leaf that an array of an optimizer's state belongs to, or "" if there is none.

    A moment of `head/kernel` lies at `.../mu/head/kernel`: the longest such suffix owns it.

    Args:
      where: path of the array in the state.
      paths: of the leaves that the optimizer moves.

    >>> owner_of("0/mu/head/kernel", {"kernel", "head/kernel"}), owner_of("0/count", {"kernel"})
    ('head/kernel', '')
    """
    segments = where.split("/")
    suffixes = ("/".join(segments[start:]) for start in range(len(segments)))
    return next((suffix for suffix in suffixes if suffix in paths), "")


def clocks_of(state: PyTree, paths: Collection[str]) -> set[str]:
    """Return where the counters stand that tell the age of moments: `count` beside `mu`, `nu`.

    A counter that stands alone belongs to a schedule, and keeps the run's time.

    Args:
      state: of an optimizer.
      paths: of the leaves that it moves.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda step: 1.0))
    >>> clocks_of(tx.init({"w": jnp.ones(1)}), {"w"})
    {'0/count'}
    """
    owners = {where: owner_of(where, paths) for where in flatten(state)}
    fields = {where.removesuffix(owner).rstrip("/") for where, owner in owners.items() if owner}
    homes = {field.rpartition("/")[0] for field in fields}
    counters = {f"{home}/count".lstrip("/") for home in homes}
    return {where for where in counters if owners.get(where) == ""}
