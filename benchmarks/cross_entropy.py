"""What does cross-entropy over a long vocabulary take, in memory and in time, by slices and whole?

    python benchmarks/cross_entropy.py               # about 3 minutes on 2 cores
    python benchmarks/cross_entropy.py --turns 1 --tokens 256 --vocabulary 8192 --output o.json

Memory is the compiler's own figure (temporary bytes of the compiled loss and gradients) at 4,096
tokens of a vocabulary of 131,072, hidden states of 1,024 in bfloat16: nothing is allocated. Time is
measured where the plain loss fits, in float32, in turns. `trained`: the words learn; `still`: they
stand still, as under LoRA.

Expect: at most 1.2 GiB trained and 0.8 still, where plain takes more than 4; time at most 1.15 of
the plain loss's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pairs
from jax import Array

from sftjax.objectives import chunked_cross_entropy

LONG = (4096, 131_072, 1024, jnp.bfloat16)
"""Tokens, words, width and type for the compiler's figures."""

Loss = Callable[[Array, Array, Array], Array]


def sliced(hidden: Array, words: Array, labels: Array) -> Array:
    """Return the loss, a slice of the vocabulary at a time."""
    return chunked_cross_entropy(hidden, words, labels).sum


def plain(hidden: Array, words: Array, labels: Array) -> Array:
    """Return the loss with all logits at once, by integer labels."""
    z = jnp.einsum("nd,vd->nv", hidden, words, preferred_element_type=jnp.float32)
    chosen = jnp.take_along_axis(z, labels[:, None], 1)[:, 0]
    return jnp.sum(jax.nn.logsumexp(z, -1) - chosen)


def shapes(tokens: int, words: int, width: int, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return what a loss is given."""
    sizes = ((tokens, width), (words, width), (tokens,))
    types = (dtype, dtype, jnp.int32)
    return tuple(map(jax.ShapeDtypeStruct, sizes, types))


def compiled(loss: Loss, argnums: Any, *given: Any) -> Any:
    """Return a loss and its gradients, compiled."""
    return jax.jit(jax.value_and_grad(loss, argnums)).lower(*given).compile()


def main() -> None:
    """Compile, time in turns, print and write."""
    options = pairs.parser(__doc__, turns=7, steps=1)
    options.add_argument("--tokens", type=int, default=1024, help="of the timed loss (1024)")
    options.add_argument("--vocabulary", type=int, default=49_152, help="(49152)")
    options.add_argument("--width", type=int, default=576, help="of the hidden states (576)")
    args = options.parse_args()
    watch = pairs.Watch()
    draws = np.random.default_rng(0)
    timed = shapes(args.tokens, args.vocabulary, args.width, jnp.float32)
    hidden, words = (jnp.asarray(draws.standard_normal(one.shape), one.dtype) for one in timed[:2])
    given = (hidden, words / 8, jnp.asarray(draws.integers(0, args.vocabulary, args.tokens)))
    rows, facts = [], {}
    for name, argnums in (("trained", (0, 1)), ("still", 0)):
        runs = {side: compiled(of, argnums, *given) for side, of in SIDES.items()}
        agree(runs, given)
        rounds = {
            side: pairs.rounds_of(lambda run=run: run(*given), args.steps)
            for side, run in runs.items()
        }
        times = pairs.alternate(rounds, args.turns, tell=print)
        held = {
            side: compiled(of, argnums, *shapes(*LONG)).memory_analysis().temp_size_in_bytes
            for side, of in SIDES.items()
        }
        middle = {side: pairs.median(found).wall for side, found in times.items()}
        rows.append({
            "words": name,
            "by slices, ms": f"{middle['slices'] * 1e3:.0f}",
            "plain, ms": f"{middle['plain'] * 1e3:.0f}",
            "ratio (min..max of a turn)": str(pairs.ratio(times["slices"], times["plain"])),
            "by slices, GiB": f"{held['slices'] / 2**30:.3f}",
            "plain, GiB": f"{held['plain'] / 2**30:.3f}",
        })  # fmt: skip
        facts[name] = {"timings": times, "temporary_bytes": held}
    pairs.publish("cross_entropy", watch.facts(), [rows], facts, args.output)


SIDES: dict[str, Loss] = {"slices": sliced, "plain": plain}


def agree(runs: dict[str, Any], given: tuple[Array, ...]) -> None:
    """Refuse to time two losses that are not one."""
    (ours, mine), (theirs, yours) = (runs[side](*given) for side in SIDES)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(yours), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


if __name__ == "__main__":
    main()
