"""Which modules get an adapter, chosen before anything is allocated."""

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from sftjax.adapters.kind import ALL_LINEAR, Kind, Site, tree_at
from sftjax.adapters.quantize import shapes_behind
from sftjax.core import PyTree, flatten, is_quantized, map_with_path, matches, nearest, unflatten

OUTPUT = ("lm_head",)
"""Modules that give the scores of words, which `all-linear` leaves out."""


class Planned(NamedTuple):
    """One site and the kind of adapter that sits there."""

    site: Site
    kind: Kind


class Plan(NamedTuple):
    """Where adapters sit; static, so that a compiled function may close over it."""

    sites: tuple[Planned, ...]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds, each once, in the order of their first sites."""
        return list({id(planned.kind): planned.kind for planned in self.sites}.values())

    def __add__(self, other: "Plan") -> "Plan":  # type: ignore[override]
        """Return both plans in one.

        Raises:
          ValueError: if a module would get two adapters.
        """
        taken = {planned.site.path: planned.kind for planned in self.sites}
        for site, kind in other.sites:
            if site.path in taken:
                raise ValueError(
                    f"{site.path} would get two adapters, {taken[site.path].name} and {kind.name}; "
                    "give each kind target_modules of its own"
                )
        return Plan((*self.sites, *other.sites))


def plan_adapter(
    params: PyTree,
    kind: Kind,
    *,
    target_modules: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] = (),
    layers_to_transform: Collection[int] | None = None,
    new: Collection[str] = (),
) -> Plan:
    """Choose the modules that get an adapter, in PEFT's words.

    Args:
      params: the model's params, arrays or shapes.
      kind: such as `lora(r=8)`.
      target_modules: a list of names, each the last segments of a module's path (`"query"`,
        `"output.dense"`; dots and slashes mean the same) or a path pattern with wildcards;
        `"all-linear"` for every module with a 2-axis kernel outside the `new` ones and but for
        the output words (`lm_head`), as in PEFT; or one regular
        expression, which must match the whole dotted path. None: where the kind sits by itself,
        all linear modules for most.
      exclude_modules: as `target_modules`; taken out again.
      layers_to_transform: only in these blocks: the numbers in the paths.
      new: paths of leaves without a pretrained value, which are trained whole.

    Returns:
      A `Plan`; plans of several kinds add up.

    Raises:
      ValueError: if a target matches nothing (the nearest modules are listed), or only modules
        whose leaves the kind cannot sit beside, or the kind does not fit a module (a rank above
        its dimensions).

    >>> from sftjax.adapters import lora
    >>> params = {"query": {"kernel": jax.ShapeDtypeStruct((4, 4), "float32")}}
    >>> [site.path for site, _ in plan_adapter(params, lora(r=2), target_modules=["query"]).sites]
    ['query']
    """
    leaves = flatten(shapes_behind(params))
    modules = _modules(leaves)
    fresh = {path.rpartition("/")[0] for path in new}
    targets = kind.targets if target_modules is None else target_modules
    chosen = _chosen(modules, leaves, targets, "target_modules", kind, fresh)
    if exclude_modules:
        chosen -= _chosen(modules, leaves, exclude_modules, "exclude_modules", kind, set())
    if layers_to_transform is not None:
        chosen = {path for path in chosen if _layer_of(path) in set(layers_to_transform)}
        if not chosen:
            raise ValueError(
                f"layers_to_transform={sorted(layers_to_transform)} leaves none of the targets "
                f"{targets!r}; give numbers as they stand in the modules' paths (layer/0, layer/1)"
            )
    planned = []
    for path in modules:
        if path not in chosen:
            continue
        leaf = _leaf_of(path, leaves, kind)
        shape = tuple(leaves[_join(path, leaf)].shape)
        site = Site(path, leaf, shape)
        if leaf == "kernel" and len(shape) not in (2, 4):
            raise ValueError(
                f"{_join(path, leaf)} has {len(shape)} axes {shape}; adapters sit beside kernels "
                "(in, out) and (height, width, in, out)"
            )
        if leaf == "embedding" and len(shape) != 2:
            raise ValueError(f"{_join(path, leaf)} has shape {shape}; a table is (rows, width)")
        kind.check(site)
        planned.append(Planned(site, kind))
    if not planned:
        have = [path.rpartition("/")[2] for path in modules if _join(path, "kernel") in leaves]
        some = ", ".join(list(dict.fromkeys(have))[:8]) or "none with a kernel"
        raise ValueError(
            f"{kind.name} finds no linear layer to sit beside, and takes convolutions only by "
            f"name: name modules (target_modules, or --adapter NAME:targets=A|B); there are {some}"
        )
    return Plan(tuple(planned))


def attach(params: PyTree, plan: Plan, key: Array) -> tuple[PyTree, PyTree]:
    r"""Return fresh adapter leaves and the base that they stand beside.

    $$ W_\text{base} + \Delta W(\text{adapter}) = W $$

    For kinds that start at zero (LoRA, DoRA, (IA)3, bottlenecks) the base is `params` itself; for
    those that start elsewhere (PiSSA, OLoRA) it is what remains of the params. A prompt and a
    prefix change no weights: the base is `params`, and fresh leaves say something already.

    Args:
      params: the pretrained params; not changed.
      plan: from `plan_adapter`.
      key: draws the leaves; each site's by its path, so that other targets change nothing.

    Returns:
      `(adapter, base)`; the adapter is a tree of the paths of the adapted modules.

    >>> from sftjax.adapters import lora
    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    >>> adapter, base = attach(params, plan_adapter(params, lora(r=2)), jax.random.key(0))
    >>> jax.tree.map(jnp.shape, adapter), base is params
    ({'dense': {'lora_a': (4, 2), 'lora_b': (2, 2)}}, True)
    """
    found, changed = {}, {}
    for site, kind in plan.sites:
        own = jax.random.fold_in(key, zlib.crc32(site.path.encode()) & 0x7FFFFFFF)
        module = tree_at(params, site.path)
        if not kind.starts_at_base and is_quantized(tree_at(module, site.leaf)):
            raise ValueError(
                f"a {kind.name} that starts at part of the weights takes it off {site.path}, which "
                "is quantized already; attach it to the whole weights, and quantize the base that "
                "it returns (quantize_base)"
            )
        leaves = kind.init(site, own, module)
        found |= {_join(site.path, name): value for name, value in leaves.items()}
        if not kind.starts_at_base and kind.unmerge is not None:
            after = kind.unmerge(leaves, module)
            changed |= {_join(site.path, name): value for name, value in after.items()}
    base = params
    if changed:
        base = map_with_path(lambda path, leaf: changed.get(path, leaf), params)
    return unflatten(found), base


def check_adapter(adapter: PyTree, plan: Plan, params: PyTree) -> None:
    """Check that adapter leaves, plan and base belong together.

    Raises:
      ValueError: naming the path where a leaf is missing, too many, or of another shape, or where
        the base is another one.
    """
    for site, _ in plan.sites:
        module = tree_at(params, site.path)
        there = tree_at(module, site.leaf)
        if there is None:
            raise ValueError(
                f"the adapter sits at {site.path}, and the base has no {site.leaf!r} there; it was "
                "made for another model"
            )
        if tuple(there.shape) != site.shape:
            raise ValueError(
                f"the adapter was made for a {site.leaf} of shape {site.shape} at {site.path}, and "
                f"this base has {tuple(there.shape)}; load the base it was trained on"
            )
    wanted = _shapes(plan, params)
    given = {path: tuple(leaf.shape) for path, leaf in flatten(adapter).items()}
    for path in sorted(wanted.keys() ^ given.keys()):
        whose = "the plan needs it" if path in wanted else "the plan knows nothing of it"
        close = ", ".join(nearest(path, list(given if path in wanted else wanted)))
        raise ValueError(
            f"adapter leaf {path}: {whose}; nearest: {close}. Use the plan that it was made with "
            "(kind, rank and targets)"
        )
    for path, shape in wanted.items():
        if given[path] != shape:
            raise ValueError(
                f"adapter leaf {path} has shape {given[path]}, and needs {shape}; use the plan "
                "that it was made with (kind, rank and targets)"
            )


def shapes_of(plan: Plan, params: PyTree) -> PyTree:
    """Return the adapter's leaves as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    return jax.eval_shape(lambda params, key: attach(params, plan, key)[0], params, _key_shape())


def _shapes(plan: Plan, params: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(shapes_of(plan, params)).items()}


def _key_shape() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _modules(leaves: Mapping[str, Any]) -> list[str]:
    """Every subtree's path, in the natural order of the leaves."""
    found: dict[str, None] = {}
    for path in leaves:
        segments = path.split("/")
        for depth in range(1, len(segments)):
            found["/".join(segments[:depth])] = None
    return list(found)


def _chosen(
    modules: list[str],
    leaves: Mapping[str, Any],
    targets: str | Sequence[str],
    what: str,
    kind: Kind,
    fresh: set[str],
) -> set[str]:
    fitting = [path for path in modules if _leaf_of(path, leaves, kind)]
    if targets == ALL_LINEAR:
        return {
            path
            for path in fitting
            if path not in fresh
            and path not in OUTPUT
            and (leaf := _join(path, _leaf_of(path, leaves, kind))).endswith("kernel")
            and len(leaves[leaf].shape) == 2
        }
    found: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        named = [path for path in modules if _names(target, path, isinstance(targets, str))]
        if not named:
            ends = {path.rpartition("/")[2]: None for path in fitting}
            close = nearest(target.rpartition(".")[2], list(ends)) or list(ends)[:5]
            raise ValueError(
                f"{what}: {target!r} names no module; nearest that {kind.name} sits beside: "
                f"{', '.join(close)}"
            )
        kept = set(named).intersection(fitting)
        if not kept:
            inside = sorted(path for path in leaves if path.startswith(f"{named[0]}/"))[:3]
            raise ValueError(
                f"{what}: {target!r} names {named[0]} (with {', '.join(inside)}), and "
                f"{kind.name} sits beside a {' or '.join(kind.leaves)}; name the linear modules"
            )
        found |= kept
    return found


def _names(target: str, path: str, expression: bool) -> bool:
    if expression:
        return re.fullmatch(target, path.replace("/", ".")) is not None
    if "*" in target:
        return matches(target, path)
    target = target.replace(".", "/").strip("/")
    return path == target or path.endswith(f"/{target}")


def _leaf_of(path: str, leaves: Mapping[str, Any], kind: Kind) -> str:
    """Return the leaf of a module that a kind sits beside, "" if there is none."""
    return next((name for name in kind.leaves if _join(path, name) in leaves), "")


def _layer_of(path: str) -> int | None:
    numbers = [segment for segment in path.split("/") if segment.isdigit()]
    return int(numbers[0]) if numbers else None


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
