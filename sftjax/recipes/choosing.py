"""Which leaves of a run move, and how fast: of plain params, or of params that wear adapters."""

from collections.abc import Collection

import jax

from sftjax.adapters import lora_plus
from sftjax.core import PyTree, flatten, map_with_path
from sftjax.models import statistics_of
from sftjax.recipes.training import Training
from sftjax.select import Selection, layerwise, scaled, select

Rules = list[tuple[str, float]]
ADAPTER = "adapter"
"""The rule of the adapter's leaves; `adapter/...` of some of them."""


def chosen_of(
    params: PyTree, new: Collection[str], training: Training, rules: Rules | None = None
) -> Selection:
    """Return what moves in a run.

    With adapters, rules are of the plain model's paths; the adapter's leaves move at the rate of
    the rule `new`, or of rules that name `adapter` or paths below it.

    Running statistics of batch norms are no weights: no rule takes them.

    Args:
      params: plain ones, or `{"adapter", "base"}`.
      new: paths of their leaves without a pretrained value.
      training: how.
      rules: of a phase; those of `training` if None.

    Raises:
      ValueError: if a rule does not fit the tree, or would train weights that have an adapter.
    """
    rules = training.rules() if rules is None else rules
    if not training.adapter:
        if training.lora_plus != 1.0:
            raise ValueError(
                f"--lora-plus {training.lora_plus:g} is a rate of an adapter's B; give an adapter "
                "(--adapter lora:r=8)"
            )
        chosen = select(params, rules, new=new, still=statistics_of(params))
        if training.layer_decay != 1.0:
            chosen = scaled(chosen, layerwise(params, training.layer_decay))
        return chosen
    chosen = _beside(params, rules, new)
    if training.layer_decay != 1.0:
        chosen = scaled(chosen, _layerwise(params, training.layer_decay))
    if training.lora_plus != 1.0:
        if not any(path.endswith("/lora_b") for path in flatten(params[ADAPTER])):
            raise ValueError(
                f"--lora-plus {training.lora_plus:g} is the rate of a LoRA's B, and --adapter "
                f"{' '.join(training.adapter)} has none; leave one of the two out"
            )
        chosen = scaled(chosen, lora_plus(params, training.lora_plus))
    return chosen


def _beside(params: PyTree, rules: Rules, new: Collection[str]) -> Selection:
    """Choose in the adapter and in its base apart, so that `last:1` or `bias` mean the model's."""
    own = [rule for rule in rules if rule[0].split("/")[0] == ADAPTER]
    fresh = [path.removeprefix("base/") for path in new if path.startswith("base/")]
    others = [rule for rule in rules if rule not in own and (fresh or rule[0] != "new")]
    rate = next((rate for pattern, rate in rules if pattern == "new"), 1.0)
    leaves = [path for path in new if path.startswith(f"{ADAPTER}/")]
    beside = {ADAPTER: params[ADAPTER]}
    try:
        named = flatten(select(beside, own).trainable) if own else {}
    except ValueError:  # rate 0 for some and nothing else: the rest moves by `new`
        named = {}
    rest = [] if named and all(named.values()) else [("new", rate)]
    adapter = select(beside, [*own, *rest], new=leaves)
    plain = params["base"]
    still = statistics_of(plain)
    base = _still(plain) if not others else select(plain, others, new=fresh, still=still)
    parts = [
        {ADAPTER: mine[ADAPTER], "base": theirs} for mine, theirs in zip(adapter, base, strict=True)
    ]
    if "initial" in params:
        parts = [
            {**part, "initial": value}
            for part, value in zip(parts, _still(params["initial"]), strict=True)
        ]
    chosen = Selection(*parts)
    _check(params, chosen)
    return chosen


def _check(params: PyTree, chosen: Selection) -> None:
    adapted = {path.rpartition("/")[0] for path in flatten(params[ADAPTER])}
    rules = flatten(chosen.rule["base"])
    for path, moves in flatten(chosen.trainable["base"]).items():
        module, _, leaf = path.rpartition("/")
        if moves and module in adapted and leaf in ("kernel", "embedding"):
            raise ValueError(
                f"--train {rules[path]} would train {path}, which has an adapter and stays what it "
                "was; train what has none (bias, norm, new, other blocks: --adapter "
                "NAME:layers=...), or leave the adapter out"
            )
        if moves and leaf in ("codes", "scales", "outer", "mean"):
            raise ValueError(
                f"--train {rules[path]} would train {module}, which --quantize keeps in few bits; "
                "train what is not quantized (bias, norm, new), or leave --quantize out"
            )


def _still(tree: PyTree) -> Selection:
    return Selection(
        jax.tree.map(lambda _: False, tree),
        jax.tree.map(lambda _: 0.0, tree),
        jax.tree.map(lambda _: "", tree),
    )


def _layerwise(params: PyTree, decay: float) -> PyTree:
    """Give an adapter's leaves the rate of the module that they sit beside."""
    base = layerwise(params["base"], decay)
    rates = flatten(base)

    def beside(path: str, _: object) -> float:
        module = path.rpartition("/")[0]
        return next(rate for own, rate in rates.items() if own.startswith(f"{module}/"))

    found = {ADAPTER: map_with_path(beside, params[ADAPTER]), "base": base}
    if "initial" in params:
        found["initial"] = map_with_path(beside, params["initial"])
    return found
