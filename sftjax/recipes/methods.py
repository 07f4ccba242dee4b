"""Ways of holding on to the pretrained weights, by name: what each one adds to a run.

A method is written `NAME` or `NAME:DOSE`, as in `l2-sp:1`. The dose means the same for each: the
share of the unanchored travel that remains is `anchor.remaining(dose)`, 0.63 at 1 and 0.25 at 4.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from sftjax.anchor import (
    adamw,
    add_base,
    averaged,
    chained,
    distillation_weight_of,
    ema_decay_of,
    ema_of_weights,
    fisher,
    importance_cap,
    materialize,
    mixout,
    mixout_rate_of,
    recadam,
    remaining,
    selective_projection_decay,
    sharpness_aware,
    strength_of,
    to_difference,
    wise_ft,
)
from sftjax.core import Batch, Objective, PyTree, TrainState, View, flatten, map_with_path
from sftjax.models.tensor_rules import TENSOR_RULES
from sftjax.objectives import Apply, Counts, distill_features, distill_logits, r3f, smart
from sftjax.recipes.norms import Norms
from sftjax.recipes.streams import Stream
from sftjax.recipes.tpgm import projecting
from sftjax.recipes.weighing import Weighing, weighing_of
from sftjax.select import bernoulli_gradients, block_ids, fisher_mask, lisa, only_elements, stacks
from sftjax.train import Step, chosen_mesh, compile_step, make_step, with_reference

DEFAULT = "l2-sp"
"""The anchor if none is named."""


class Parts(NamedTuple):
    """What methods may need of a model."""

    objective: Callable[[Apply], Objective]
    """The task's objective of any function that gives logits."""
    logits: Apply
    features: Apply
    """(B, D): what a row is to the model, whatever the head."""
    embed: Callable[[PyTree, Batch], Array]
    """`(params, batch) -> h`, the input that smoothing disturbs."""
    rest: Callable[[PyTree, Array, Batch, Array | None], Array]
    """`(params, h, batch, key) -> logits`."""
    logits_before: Apply | None = None
    """Of the same params, what the pretrained model gives, where `logits` of pretrained values does
    not: with an adapter."""
    features_before: Apply | None = None
    hold: Callable[[Objective, float], Objective] | None = None
    """Adds to an objective a weight times the distance of an adapter's change of the weights."""
    longer: bool = False
    """Whether an adapter puts places before the tokens."""
    counts: Counts | None = None
    """Which positions of the logits count, where a row has several."""
    held_out: Stream | None = None
    """Labelled rows that are not trained on, for a method that learns from such (`holds_out`)."""
    norms: Norms | None = None
    """The batch norms of the model, if it may have any."""


class Setting(NamedTuple):
    """The run that a method is built for."""

    dose: float
    learning_rate: optax.Schedule
    num_steps: int
    trainable: PyTree
    """Shapes of the leaves that move, holes elsewhere."""
    new: tuple[str, ...]
    """Paths of the leaves without a pretrained value."""
    parts: Parts
    options: Mapping[str, Any]
    """Further arguments of the optimizer: `weight_decay`, `rates`, `max_grad_norm`."""
    key: Array
    strength: float | None = None
    """The pull itself, instead of the dose."""
    coupled: bool = False
    importance_weight: float = 1.0
    """How far the anchor is weighed by the Fisher (see `weighing`)."""


class Method(NamedTuple):
    """What a run is made of."""

    tx: optax.GradientTransformation
    objective: Objective
    strength: float = 0.0
    """What the dose came to: lambda, a rate, a weight; 0 where there is none."""
    view: View | None = None
    wrap: Callable[[Step], Step] = lambda step: step
    """Around the step, before it is compiled."""
    importance: Callable[[PyTree, PyTree, Iterable[Batch]], PyTree] | None = None
    """`(params, anchor, batches) -> F`, if the run needs one."""
    weigh: Callable[[PyTree], Weighing] | None = None
    """How F weighs the pull; `None` where it is a mask of the scalars that move."""
    start: Callable[[PyTree, PyTree], PyTree] = lambda params, anchor: params
    """`(params, anchor) ->` what is trained in their place."""
    weights: Callable[[TrainState], PyTree] = lambda state: state.trainable
    """The leaves to keep of a state."""
    seen: Callable[[PyTree, PyTree | None], PyTree] = lambda kept, anchor: kept
    """`(kept leaves, anchor) ->` the weights they stand for."""
    finish: Callable[[PyTree, PyTree], PyTree] = lambda pretrained, params: params
    """`(pretrained, tuned) ->` the model, once training is over."""


class Known(NamedTuple):
    """A named method."""

    build: Callable[[Setting], Method]
    title: str
    dosed: bool = True
    """Whether it takes a dose."""
    holds: bool = True
    """Whether the step needs the pretrained values."""
    holds_out: bool = False
    """Whether it learns from rows that are held out of the training rows."""


def parse(text: str) -> tuple[str, float | None]:
    """Read `NAME` or `NAME:DOSE`.

    Raises:
      ValueError: if the name is unknown, the dose is no number, or the method takes none.

    >>> parse("l2-sp:0.5"), parse("none"), parse("")
    (('l2-sp', 0.5), ('none', None), ('l2-sp', None))
    """
    text = text or DEFAULT
    name, colon, number = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"anchor {name!r} is unknown; there are: {', '.join(METHODS)}")
    if not colon:
        return name, None
    try:
        dose = float(number)
    except ValueError:
        raise ValueError(f"{text!r}: write NAME:DOSE with a number, as in 'l2-sp:1'") from None
    if not METHODS[name].dosed:
        raise ValueError(f"{name!r} takes no dose; write {name!r} alone")
    return name, dose


def build_method(name: str, setting: Setting) -> Method:
    """Return the named method for a run; a dose of 0 is `none` for every method that takes one.

    Raises:
      ValueError: if the name is unknown, or the method cannot work here (what to do is said).
    """
    if name not in METHODS:
        raise ValueError(f"anchor {name!r} is unknown; there are: {', '.join(METHODS)}")
    known = METHODS[name]
    return _none(setting) if known.dosed and setting.dose == 0 else known.build(setting)


def _none(s: Setting) -> Method:
    return Method(adamw(s.learning_rate, **s.options), s.parts.objective(s.parts.logits))


def _l2_sp(s: Setting) -> Method:
    if s.strength is None and s.coupled:
        raise ValueError(
            "a coupled pull has no dose under Adam, which divides it by the size of the gradient: "
            "give --strength (0.1 is a usual one), or leave --coupled out"
        )
    strength = s.strength
    if strength is None:
        strength = strength_of(s.dose, s.learning_rate, s.num_steps)
    tx = adamw(
        s.learning_rate,
        strength=strength,
        num_steps=s.num_steps,
        coupled=s.coupled,
        **s.options,
    )
    method = _none(s)._replace(tx=tx, strength=strength)
    if s.coupled and s.parts.hold is not None:
        return method._replace(objective=s.parts.hold(method.objective, strength))
    return method


def _ewc(s: Setting) -> Method:
    method = _l2_sp(s)
    # A Fisher is heavy-tailed: what a decoupled pull cannot carry in one update is cut off.
    cap = importance_cap(method.strength, s.learning_rate, s.num_steps)

    def features(params: PyTree, batch: Batch) -> Array:
        return s.parts.features(params, batch, None)

    def importance(params: PyTree, anchor: PyTree, batches: Iterable[Batch]) -> PyTree:
        # Of the features, which pretraining made: a fresh head would say what the new task needs.
        # The draws are the same for every seed, so that the runs of a sweep can share it.
        return fisher(features, params, anchor, batches, labels="normal", key=jax.random.key(0))

    def weigh(found: PyTree) -> Weighing:
        return weighing_of(found, None if s.coupled else cap, s.importance_weight)

    return method._replace(importance=importance, weigh=weigh)


def _recadam(s: Setting) -> Method:
    tx = recadam(s.learning_rate, num_steps=s.num_steps, dose=s.dose, **s.options)
    return _none(s)._replace(tx=tx)


def _difference(s: Setting) -> Method:
    """L2-SP again, by another parameterisation: what decays is the difference itself."""
    strength = strength_of(s.dose, s.learning_rate, s.num_steps)
    differences = map_with_path(lambda path, _: path not in s.new, s.trainable)
    matrices = map_with_path(lambda path, leaf: path in s.new and leaf.ndim > 1, s.trainable)
    tx = chained(
        s.learning_rate,
        [
            optax.scale_by_adam(),
            optax.add_decayed_weights(strength, mask=differences),
            optax.add_decayed_weights(s.options["weight_decay"], mask=matrices),
        ],
        rates=s.options["rates"],
        max_grad_norm=s.options["max_grad_norm"],
    )
    return _none(s)._replace(
        tx=tx, strength=strength, view=add_base, start=to_difference,
        seen=materialize,
    )  # fmt: skip


def _mixout(s: Setting) -> Method:
    rate = mixout_rate_of(s.dose)
    return _none(s)._replace(view=mixout(rate), strength=rate)


def _features(s: Setting) -> Method:
    before = s.parts.features_before or s.parts.features
    return _distilled(s, distill_features, s.parts.features, before, "reference_features")


def _logits(s: Setting) -> Method:
    fresh = [path for path in s.new if not path.startswith("adapter/")]
    if fresh:
        raise ValueError(
            "anchor 'logits' holds on to what the pretrained head says, and this head is new "
            f"({', '.join(fresh[:2])}); start from a checkpoint with a trained head, or use "
            "'features'"
        )
    before = s.parts.logits_before or s.parts.logits
    distill = functools.partial(distill_logits, counts=s.parts.counts)
    return _distilled(s, distill, s.parts.logits, before, "reference_logits")


def _distilled(
    s: Setting, distill: Callable[..., Objective], of: Apply, before: Apply, name: str
) -> Method:
    """Hold an output of the model to the pretrained one's, which joins the batch as `name`."""
    weight = distillation_weight_of(s.dose)
    return _none(s)._replace(
        objective=distill(s.parts.objective(s.parts.logits), of, weight),
        strength=weight,
        wrap=lambda step: with_reference(
            step, lambda params, batch: before(params, batch, None), name
        ),
    )


def _projection_decay(s: Setting) -> Method:
    tx = optax.chain(adamw(s.learning_rate, **s.options), selective_projection_decay())
    return _none(s)._replace(tx=tx)


def _ema(s: Setting) -> Method:
    decay = ema_decay_of(s.dose, s.num_steps, s.learning_rate)
    tx = optax.chain(adamw(s.learning_rate, **s.options), ema_of_weights(decay))
    return _none(s)._replace(
        tx=tx, strength=decay, weights=lambda state: averaged(state.opt_state, state.trainable)
    )


def _wise_ft(s: Setting) -> Method:
    if set(flatten(s.trainable)) <= set(s.new):
        raise ValueError(
            "anchor 'wise-ft' goes back towards pretrained values, and no leaf that moves has one; "
            "train one too (such as last:1) or use another anchor"
        )
    alpha = remaining(s.dose)

    def finish(pretrained: PyTree, params: PyTree) -> PyTree:
        ((_, mixed),) = wise_ft(pretrained, params, [alpha])
        return mixed

    return _none(s)._replace(finish=finish, strength=alpha)


def _tpgm(s: Setting) -> Method:
    held_out, moving = s.parts.held_out, set(flatten(s.trainable))
    if held_out is None:
        raise ValueError(
            "anchor 'tpgm' learns how far each tensor may go from rows that the weights were not "
            "trained on; give the parts of the model such rows (`Parts.held_out`)"
        )
    if moving <= set(s.new):
        raise ValueError(
            "anchor 'tpgm' projects pretrained leaves, and none moves; train one too (such as "
            "last:1) or use another anchor"
        )
    objective = s.parts.objective(s.parts.logits)
    return _none(s)._replace(finish=projecting(objective, held_out, moving))


def _r3f(s: Setting) -> Method:
    objective = r3f(s.parts.objective(s.parts.logits), s.parts.embed, s.parts.rest)
    return _none(s)._replace(objective=objective)


def _smart(s: Setting) -> Method:
    objective = smart(s.parts.objective(s.parts.logits), s.parts.embed, s.parts.rest)
    return _none(s)._replace(objective=objective)


def _sharpness(s: Setting) -> Method:
    return _none(s)._replace(tx=sharpness_aware(adamw(s.learning_rate, **s.options)))


def _child_f(s: Setting) -> Method:
    tx = optax.chain(bernoulli_gradients(0.3, s.key), adamw(s.learning_rate, **s.options))
    return _none(s)._replace(tx=tx)


def _child_d(s: Setting) -> Method:
    def importance(params: PyTree, anchor: PyTree, batches: Iterable[Batch]) -> PyTree:
        found = fisher(lambda p, batch: s.parts.logits(p, batch, None), params, anchor, batches)
        return fisher_mask(found, 0.3)

    return _none(s)._replace(importance=importance)


def _lisa(s: Setting) -> Method:
    moving = [block for stack in stacks(s.trainable) for block in stack.blocks]
    if len(moving) < 2:
        raise ValueError(
            "anchor 'lisa' draws among the blocks that move, and fewer than two do; train more of "
            "them (such as last:3)"
        )
    blocks = block_ids(s.trainable)
    inner = adamw(s.learning_rate, **s.options)
    every = max(1, min(20, s.num_steps // 5))
    return _none(s)._replace(tx=lisa(inner, blocks, active=1, every=every, key=s.key))


METHODS: dict[str, Known] = {
    "none": Known(_none, "no anchor", dosed=False, holds=False),
    "l2-sp": Known(_l2_sp, "L2-SP"),
    "ewc": Known(_ewc, "EWC"),
    "recadam": Known(_recadam, "RecAdam"),
    "difference": Known(_difference, "L2-SP of a trained difference"),
    "mixout": Known(_mixout, "mixout"),
    "features": Known(_features, "feature distillation"),
    "logits": Known(_logits, "logit distillation"),
    "ema": Known(_ema, "EMA from the pretrained weights"),
    "wise-ft": Known(_wise_ft, "WiSE-FT", holds=False),
    "tpgm": Known(_tpgm, "TPGM", dosed=False, holds=False, holds_out=True),
    "spd": Known(_projection_decay, "selective projection decay", dosed=False),
    "r3f": Known(_r3f, "R3F", dosed=False, holds=False),
    "smart": Known(_smart, "SMART", dosed=False, holds=False),
    "sam": Known(_sharpness, "SAM", dosed=False, holds=False),
    "child-f": Known(_child_f, "Child-Tuning F", dosed=False, holds=False),
    "child-d": Known(_child_d, "Child-Tuning D", dosed=False),
    "lisa": Known(_lisa, "LISA", dosed=False, holds=False),
}
"""Name -> method; `--anchor` and `compare` take these."""

STRONG = ("l2-sp", "ewc")
"""Methods whose pull can be given as it is, instead of by a dose."""


def masked(method: Method, mask: PyTree) -> Method:
    """Return the method moving only the scalars of a mask, beside the leaves that it leaves out."""
    return method._replace(tx=only_elements(method.tx, mask))


def compiled(method: Method, tx: optax.GradientTransformation, accumulate: int) -> Step:
    """Return the compiled step of a method under an optimizer (its own, or a phase's of it)."""
    step = make_step(method.objective, tx, accumulate=accumulate, view=method.view)
    return compile_step(method.wrap(step), chosen_mesh(), TENSOR_RULES)
