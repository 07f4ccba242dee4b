"""A fine-tuning run in phases: a head first and then the rest, or block after block."""

import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sftjax.anchor import anchor_of
from sftjax.core import Fixed, PyTree, TrainState, combine, flatten, partition
from sftjax.data import Batches
from sftjax.models import statistics_of
from sftjax.recipes.deciding import Decision, decide, loop_options, pretrained, with_rates
from sftjax.recipes.home import ReplayDone, checkpoints_in, keeping
from sftjax.recipes.methods import METHODS, Parts, parse
from sftjax.recipes.norms import measured_anew
from sftjax.recipes.phase_words import phases_of_words, with_new
from sftjax.recipes.stepping import compiled, diagnosing
from sftjax.recipes.streams import Stream
from sftjax.recipes.training import LESS_IS_BETTER, Training, Tuned
from sftjax.recipes.watching import watching
from sftjax.select import describe, select
from sftjax.train import (
    Fit,
    Phase,
    Step,
    at_home,
    chosen_mesh,
    replay_phases,
    replicate,
    run_phases,
    spread,
)

WHOLE_RUN = ("ewc", "child-d", "difference", "ema")
"""Methods whose state belongs to one partition; they do not go on from phase to phase."""


def finetune_in_phases(
    params: PyTree,
    new: Collection[str],
    parts: Parts,
    stream: Stream | Batches,
    training: Training,
    *,
    evaluate: Callable[[PyTree], dict[str, float]] | None,
    folder: pathlib.Path | None,
    title: str,
    tell: Callable[[str], None],
    before: Callable[[], None] | None,
) -> Tuned:
    """Do what `finetune` does, phase by phase; each starts a new optimizer and schedule.

    The dose is shared among the phases that hold pretrained leaves, by their updates.

    Raises:
      ReplayDone: with what was found, where an update is to be made again.
    """
    name, own = parse(training.anchor)
    if name in WHOLE_RUN:
        raise ValueError(
            f"anchor {name!r} does not go through phases; use one of "
            f"{', '.join(known for known in METHODS if known not in WHOLE_RUN)}, or no --phases"
        )
    if parts.norms is not None and parts.norms.word == "adapt":
        raise ValueError(
            "--statistics adapt follows the batches of one phase; with --phases let them stand "
            "still (frozen) or be measured anew at the end (recalibrate)"
        )
    dose = training.dose if own is None else own
    num_steps = training.num_steps(stream.steps_per_epoch)
    wanted = [
        (phase, with_new(rules, new), made)
        for phase, rules, made in phases_of_words(training.phases, training.rules(), num_steps)
    ]
    holding = [_moves_pretrained(params, new, rules) for _, rules, _ in wanted]
    held = sum(made for (_, _, made), holds in zip(wanted, holding, strict=True) if holds)
    plans: list[Decision] = []
    for (_, rules, made), holds in zip(wanted, holding, strict=True):
        share = dose * made / held if holds else 0.0
        plans.append(decide(params, new, parts, training, rules, made, dose=share))
    phases = [
        Phase(name, plan.selection.trainable, plan.method.tx, made, reset_optimizer=True)
        for (name, _, made), plan in zip(wanted, plans, strict=True)
    ]
    anchor = None
    if METHODS[name].holds and (dose > 0 or not METHODS[name].dosed):
        ever = jax.tree.map(lambda *moves: any(moves), *(p.selection.trainable for p in plans))
        anchor = anchor_of(params, ever, new=new)
    waiting = iter(plans)

    def bare(tx: optax.GradientTransformation) -> Step:
        accumulate = training.gradient_accumulation_steps
        return compiled(next(waiting).method, tx, accumulate, training.on_nan)

    def score(state: TrainState, fixed: Fixed) -> dict[str, float]:
        assert evaluate is not None
        return evaluate(combine(state.trainable, fixed.frozen))

    every = training.eval_steps or stream.steps_per_epoch
    options = loop_options(training, every)
    begun: dict[str, Any] = {
        "anchor": anchor,
        "frozen_dtype": jnp.bfloat16 if training.bf16 else None,
        "place": replicate if chosen_mesh() is None else lambda tree: tree,  # the step puts it
        "folder": None if folder is None else checkpoints_in(folder),
        "keeping": None if folder is None else keeping(folder, training),
    }
    if training.replay is not None:
        found = replay_phases(
            params,
            phases,
            bare,
            spread(stream.at),
            jax.random.key(training.seed),
            training.replay,
            **begun,
            **{name: options[name] for name in ("metric", "greater_is_better", "patience")},
        )
        raise ReplayDone(found)
    if before is not None:
        before()
    with watching(training, folder, stream.at, num_steps, title=title, tell=tell) as around:
        run = run_phases(
            params,
            phases,
            lambda tx: around.around(bare(tx)),
            around.batch_at,
            jax.random.key(training.seed),
            tell=tell,
            evaluate=None if evaluate is None else score,
            diagnose=diagnosing(plans[-1].method, training.gradient_accumulation_steps),
            **begun,
            **around.options,
            **options,
        )
    last, end = plans[-1], at_home(run.best)
    report = describe(
        params, last.selection, tx=last.method.tx, anchor=last.anchor, policy=last.policy or ""
    )
    tell(str(report))
    begin, history = 0, []
    for (_, _, made), plan in zip(wanted, plans, strict=True):
        records = [entry for entry in run.history if begin < entry["step"] <= begin + made]
        history += with_rates(records, plan.schedule, begin)
        begin += made
    begin -= wanted[-1][2]
    scores = {
        int(entry["step"]): entry[options["metric"]]
        for entry in run.history
        if entry["step"] > begin and options["metric"] in entry
    }
    pick = min if training.metric_for_best_model.endswith(LESS_IS_BETTER) else max
    best_step = pick(scores, key=scores.__getitem__) if scores else num_steps
    kept = partition(end, last.selection.trainable)[0]
    best = last.method.finish(pretrained(params, new), end)
    best = measured_anew(parts.norms, last.policy, best, stream)
    fitted = Fit(run.end.state, kept, best_step, history, run.seconds, run.faults)
    return Tuned(best, fitted, last.selection, report, last.method.strength, num_steps)


def _moves_pretrained(params: PyTree, new: Collection[str], rules: list[tuple[str, float]]) -> bool:
    chosen = select(params, rules, new=new, still=statistics_of(params))
    moving = flatten(chosen.trainable)
    return any(moves and path not in new for path, moves in moving.items())
