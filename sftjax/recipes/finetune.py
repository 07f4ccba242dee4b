"""Fine-tune by what moves, how fast, and by what it is held: the part that recipes share."""

import pathlib
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from sftjax.core import Batch, Fixed, PyTree, TrainState, combine, count, partition
from sftjax.data import Batches
from sftjax.models import TENSOR_RULES, take_statistics
from sftjax.recipes.average import averaging, read_average
from sftjax.recipes.deciding import decide, loop_options, pretrained, with_rates
from sftjax.recipes.home import checkpoints_of, replay_and_leave
from sftjax.recipes.in_phases import finetune_in_phases
from sftjax.recipes.methods import Method, Parts, masked, parse
from sftjax.recipes.norms import filled, measured_anew
from sftjax.recipes.several import by_each
from sftjax.recipes.stepping import compiled, compiled_while, diagnosing
from sftjax.recipes.streams import Stream
from sftjax.recipes.training import Training, Tuned
from sftjax.recipes.watching import watching
from sftjax.recipes.weighing import weighed
from sftjax.select import Selection, describe
from sftjax.train import apart, at_home, fit, init, settle, spread, use_mesh


def finetune(
    params: PyTree,
    new: Collection[str],
    parts: Parts,
    stream: Stream | Batches,
    training: Training,
    *,
    evaluate: Callable[[PyTree], dict[str, float]] | None = None,
    folder: pathlib.Path | None = None,
    title: str = "training",
    tell: Callable[[str], None] = lambda text: None,
    held: Collection[str] = (),
    before: Callable[[], None] | None = None,
) -> Tuned:
    """Select, anchor, compile and fit.

    Args:
      params: the pretrained tree, with its new leaves.
      new: paths of the new leaves.
      parts: the task's objective and what methods need of the model.
      stream: the training batches; a `data.Batches` is one, too.
      training: how.
      evaluate: `params -> {"eval_loss": ...}`; `None` keeps the last weights.
      folder: the run's, already claimed: its checkpoints (from which it resumes) and its log;
        `None` saves nothing.
      title: what the progress bar says.
      tell: is given the selection's report before anything is compiled.
      held: paths of new leaves that are held to their start like pretrained ones (an adapter's).
      before: what is to be measured before the first update; the step compiles meanwhile.

    Returns:
      A `Tuned`.
    """
    if training.average:
        read_average(training.average)
        if training.phases or parse(training.anchor)[0] == "ema":
            raise ValueError(
                f"--average {training.average}: phases start an average anew, and --anchor ema "
                "makes one of its own; leave one of the two out"
            )
    if training.phases and training.adapter:
        raise ValueError(
            "--phases move ever more of the weights, and --adapter leaves the weights as they are; "
            "leave one of the two out"
        )
    use_mesh(training.mesh or ("data=-1" if jax.process_count() > 1 else ""))
    evaluate = None if evaluate is None else by_each(evaluate)
    if training.phases:
        return finetune_in_phases(
            params, new, parts, stream, training,
            evaluate=evaluate, folder=folder, title=title, tell=tell, before=before,
        )  # fmt: skip
    num_steps = training.num_steps(stream.steps_per_epoch)
    plan = decide(params, new, parts, training, training.rules(), num_steps, held=held)
    if plan.note:
        tell(plan.note)
    new = [path for path in new if path not in held]
    method, chosen, anchor = plan.method, plan.selection, plan.anchor
    importance = None
    if method.importance is not None:
        assert anchor is not None
        tell(f"Fisher information of {count(anchor):,} scalars, over one epoch of rows")
        batches = (stream.at(step) for step in range(stream.steps_per_epoch))
        found = method.importance(params, anchor, batches)
        if method.weigh is None:
            method = masked(method, found)
        else:
            importance = weighed(found, method.weigh(found))
    moving = partition(params, chosen.trainable)[0]
    method = averaging(method, training.average, num_steps, moving, new)
    policy = plan.policy
    report = describe(params, chosen, tx=method.tx, anchor=anchor, policy=policy or "")
    tell(str(report))
    rest, statistics = params, None
    if policy is not None and policy.adapt:
        rest, statistics = take_statistics(params, policy.adapt)
        method = method._replace(objective=filled(method.objective))
    began = begin(rest, chosen, method, training, anchor, importance, statistics)
    with apart(False):
        state, fixed = settle(*began, TENSOR_RULES)
    step = compiled(method, method.tx, training.gradient_accumulation_steps, training.on_nan)

    def weights(state: TrainState) -> PyTree:
        moved = method.weights(state)
        return moved if statistics is None else combine(moved, state.model_state)

    def score(state: TrainState, fixed: Fixed) -> dict[str, float]:
        assert evaluate is not None
        return evaluate(combine(method.seen(weights(state), fixed.anchor), fixed.frozen))

    if training.replay is not None:
        replay_and_leave(folder, training, step, state, fixed, stream.at)
    at: Callable[[int], Batch] = stream.at
    if before is not None:
        at = _with_first(at, at(0))
        with apart(False):
            first = spread(at)(0)
        compiled_while(before, step, state, fixed, first)
    every = training.eval_steps or stream.steps_per_epoch
    with (
        watching(training, folder, at, num_steps, title=title, tell=tell) as around,
        checkpoints_of(folder, training) as checkpoints,
    ):
        run = fit(
            around.around(step),
            state,
            fixed,
            around.batch_at,
            num_steps,
            evaluate=None if evaluate is None else score,
            checkpoints=checkpoints,
            weights=weights,
            diagnose=diagnosing(method, training.gradient_accumulation_steps),
            **around.options,
            **loop_options(training, every),
        )
    # Frozen leaves as they came: those in `fixed` may have been cast.
    run = run._replace(best=at_home(run.best))
    best = combine(method.seen(run.best, anchor), partition(rest, chosen.trainable)[1])
    best = method.finish(pretrained(params, new), best)
    best = measured_anew(parts.norms, policy, best, stream)
    history = with_rates(run.history, plan.schedule)
    return Tuned(best, run._replace(history=history), chosen, report, method.strength, num_steps)


def _with_first(at: Callable[[int], Batch], first: Batch) -> Callable[[int], Batch]:
    """Return `at` without making batch 0, which is there, again."""
    return lambda number: at(number) if number else first


def begin(
    params: PyTree,
    chosen: Selection,
    method: Method,
    training: Training,
    anchor: PyTree | None,
    importance: PyTree | None = None,
    statistics: PyTree | None = None,
) -> tuple[TrainState, Fixed]:
    """Return what a run starts from; under `jax.eval_shape` its shapes."""
    return init(
        method.start(params, anchor),
        chosen.trainable,
        method.tx,
        jax.random.key(training.seed),
        anchor=anchor,
        importance=importance,
        model_state=statistics,
        frozen_dtype=jnp.bfloat16 if training.bf16 else None,
    )
