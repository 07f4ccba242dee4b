"""What a run is to do, decided from its settings before anything is compiled."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sftjax.anchor import anchor_of
from sftjax.core import PyTree, flatten, map_with_path, partition
from sftjax.models import Policy
from sftjax.recipes.choosing import chosen_of
from sftjax.recipes.methods import METHODS, STRONG, Method, Parts, Setting, build_method, parse
from sftjax.recipes.norms import following, policy_of
from sftjax.recipes.optimizers import scale_of
from sftjax.recipes.phase_words import phases_of_words, with_new
from sftjax.recipes.training import LESS_IS_BETTER, Training
from sftjax.select import Selection
from sftjax.train import Record, linear_schedule


class Decision(NamedTuple):
    """What is to be done, before anything is compiled."""

    selection: Selection
    anchor: PyTree | None
    schedule: optax.Schedule
    method: Method
    policy: Policy | None = None
    """Who may move the statistics of batch norms; None where there are none."""
    note: str = ""
    """What to tell a person before the run: that adapters go without the default anchor."""


def decide(
    params: PyTree,
    new: Collection[str],
    parts: Parts,
    training: Training,
    rules: list[tuple[str, float]],
    num_steps: int,
    *,
    dose: float | None = None,
    held: Collection[str] = (),
) -> Decision:
    """Choose what moves and build the method that holds it.

    Leaves that are new but `held` (those in which an adapter's change is linear) are anchored to
    their start.

    Raises:
      ValueError: if a rule, the anchor's name or the dose does not fit the tree.
    """
    name, own = parse(training.anchor)
    chosen = chosen_of(params, new, training, rules)
    if parts.norms is not None and training.adapter and parts.norms.word != "frozen":
        raise ValueError(
            f"--statistics {parts.norms.word} moves the statistics of the weights, and --adapter "
            "leaves the weights as they are; leave one of the two out"
        )
    policy = policy_of(parts.norms, params, chosen.trainable)
    parts = parts._replace(objective=following(parts.objective, parts.norms, policy))
    new = [path for path in new if path not in held]
    trainable = partition(params, chosen.trainable)[0]
    fresh = all(path in new for path in flatten(trainable))
    if fresh and not training.anchor:
        name = "none"  # nothing that moves has a value to be held to
    elif training.adapter:
        name = _beside(training, name, fresh, parts)
    dose = next(given for given in (dose, own, training.dose) if given is not None)
    if training.strength is not None:
        if name not in STRONG:
            raise ValueError(
                f"--strength is the pull of {' and '.join(STRONG)}, and the anchor is {name!r}; "
                f"use --anchor {STRONG[0]}, or leave --strength {training.strength:g} out"
            )
        dose = 1.0 if training.strength else 0.0  # stands for "some" until the strength is used
    if training.coupled and name not in STRONG:
        raise ValueError(
            f"--coupled is a way of {' and '.join(STRONG)}, and the anchor is {name!r}; use "
            f"--anchor {STRONG[0]}, or leave --coupled out"
        )
    note = ""
    if fresh and training.adapter and not training.anchor and dose > 0:
        note = (
            f"no anchor: nothing that moves with --adapter {' '.join(training.adapter)} can be "
            "held to the pretrained weights, so the dose has no part in this run"
        )
    if training.importance_weight != 1.0 and name != "ewc":
        raise ValueError(
            f"--importance-weight {training.importance_weight:g} is of ewc, and the anchor is "
            f"{name!r}; use --anchor ewc or leave it out"
        )
    if not 0.0 <= training.importance_weight <= 1.0:
        raise ValueError(
            f"--importance-weight is {training.importance_weight:g}; it goes from 0 (l2-sp) to 1 "
            "(ewc)"
        )
    scale = scale_of(training.optim, name)
    peak = training.learning_rate
    if training.phases and fresh:
        name, peak = "none", training.probe_learning_rate
    holds = METHODS[name].holds and (dose > 0 or not METHODS[name].dosed)
    # A coupled pull of an adapter is of its product (`Parts.hold`), and not of its leaves.
    apart = {*new, *held} if training.adapter and training.coupled else new
    if training.adapter and all(path in apart for path in flatten(trainable)):
        holds = False
    anchor = anchor_of(params, chosen.trainable, new=apart) if holds else None
    schedule = linear_schedule(peak, num_steps, warmup_ratio=training.warmup_ratio)
    setting = Setting(
        dose=dose,
        learning_rate=schedule,
        num_steps=num_steps,
        trainable=trainable,
        new=tuple(new),
        parts=parts,
        options={
            "weight_decay": training.weight_decay,
            "rates": chosen.rate,
            "max_grad_norm": training.max_grad_norm or None,
            **({} if scale is None else {"scale": scale}),
        },
        key=jax.random.key(training.seed),
        strength=training.strength,
        coupled=training.coupled,
        importance_weight=training.importance_weight,
    )
    return Decision(chosen, anchor, schedule, build_method(name, setting), policy, note)


def _beside(training: Training, name: str, fresh: bool, parts: Parts) -> str:
    """Return the anchor of a run with adapters.

    Raises:
      ValueError: if it does not go with them.
    """
    if name == "ema":
        raise ValueError(
            "anchor 'ema' averages weights, and the product of averaged factors is not the average "
            "of products; hold an adapter by l2-sp or wise-ft, or keep an average (--average)"
        )
    if name in ("r3f", "smart") and parts.longer:
        raise ValueError(
            f"anchor {name!r} disturbs the embeddings of the tokens, and a prompt puts others "
            "before them; use another anchor (features) or another adapter (prefix)"
        )
    if fresh and METHODS[name].holds and name not in ("features", "logits"):
        raise ValueError(
            f"anchor {name!r} holds trained weights near their pretrained values, and with "
            f"--adapter {' '.join(training.adapter)} no pretrained weight moves, nor has the "
            "adapter's change a distance from them; hold what the model says (--anchor features), "
            "or nothing (--anchor none)"
        )
    return name


def rules_of(training: Training, new: Collection[str]) -> list[list[tuple[str, float]]]:
    """Return the rules of a run, or those of each of its phases.

    >>> rules_of(Training(phases=("lp", "ft")), ["head"])
    [[('new', 1.0)], [('last:2', 1.0)]]
    """
    if not training.phases:
        return [training.rules()]
    phases = phases_of_words(training.phases, training.rules(), 10**6)
    return [with_new(rules, new) for _, rules, _ in phases]


def loop_options(training: Training, every: int) -> dict[str, Any]:
    """Return the arguments of `fit` that a `Training` decides."""
    return {
        "eval_steps": every,
        "metric": training.metric_for_best_model,
        "greater_is_better": not training.metric_for_best_model.endswith(LESS_IS_BETTER),
        "patience": training.early_stopping_patience,
        "save_steps": training.save_steps or every,
        "log_steps": training.logging_steps,
        "on_nan": training.on_nan,
    }


def with_rates(history: list[Record], schedule: optax.Schedule, begin: int = 0) -> list[Record]:
    """Return the history with the learning rate of each training record."""
    return [
        {**entry, "learning_rate": float(jnp.asarray(schedule(int(entry["step"]) - 1 - begin)))}
        if "loss" in entry
        else entry
        for entry in history
    ]


def told(training: Training, strength: float, leaves: int) -> str:
    """Return in words how a run was held to its pretrained weights, "" if it was not.

    >>> told(Training(), 0.5, 40)
    'L2-SP, decoupled, dose 1 (0.5), 40 leaves'
    >>> told(Training(coupled=True, strength=0.1), 0.1, 0)  # of an adapter's product
    'L2-SP, coupled, strength 0.1'
    """
    name, own = parse(training.anchor)
    dose = training.dose if own is None else own
    left_out = not training.anchor and not leaves and not training.coupled
    if left_out or name == "none" or (METHODS[name].dosed and not dose):
        return ""
    words = [METHODS[name].title]
    if name in ("l2-sp", "ewc"):
        words.append("coupled" if training.coupled else "decoupled")
    if training.strength is not None:
        words.append(f"strength {training.strength:g}")
    elif METHODS[name].dosed:
        words.append(f"dose {dose:g}" + (f" ({strength:.4g})" if strength else ""))
    return ", ".join([*words, *([f"{leaves} leaves"] if leaves else [])])


def settings_told(training: Training, held: str) -> dict[str, Any]:
    """Return the settings that a card lists: without a dose that had no part in the run.

    Args:
      training: how it was asked for.
      held: from `told`.

    >>> [settings_told(Training(dose=dose), "").get("dose") for dose in (1.0, 0.0)]
    [None, 0.0]
    >>> settings_told(Training(), "L2-SP, decoupled, dose 1 (0.5), 40 leaves")["dose"]
    1.0
    """
    name, own = parse(training.anchor)
    takes = METHODS[name].dosed and own is None and training.strength is None
    if takes and (held or not training.dose):
        return training.facts()
    return {name: value for name, value in training.facts().items() if name != "dose"}


def pretrained(params: PyTree, new: Collection[str]) -> PyTree:
    """Return the params with holes where a leaf has no pretrained value.

    >>> pretrained({"trunk": 1, "head": 2}, ["head"])
    {'head': None, 'trunk': 1}
    """
    return map_with_path(lambda path, leaf: None if path in new else leaf, params)
