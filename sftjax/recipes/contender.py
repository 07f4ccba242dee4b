"""The words of `compare --methods`: how a run of a method trains, and what is merged after it."""

import dataclasses
from typing import Any, NamedTuple

from sftjax.adapters import parse_adapter
from sftjax.recipes.methods import METHODS, parse
from sftjax.recipes.mixing import How, read_how
from sftjax.recipes.training import Training

SEVERAL = 3
"""Models in a soup, where `runs=` does not say."""


class Contender(NamedTuple):
    """A method of a comparison."""

    training: Training
    how: How | None = None
    """How its models are merged; `None` where it trains one and leaves it."""
    runs: int = 1
    """Models that are merged: of the same rows and head, in other orders."""

    @property
    def holds_out(self) -> bool:
        """Whether it needs rows that it does not train on."""
        named = METHODS[parse(self.training.anchor)[0]].holds_out
        return named or (self.how is not None and self.how.name == "greedy")


def contender_of(text: str, shared: Training) -> Contender:
    """Read a method of `--methods`.

    Raises:
      ValueError: if a word cannot be read.

    >>> found = contender_of("l2-sp:4+lr=5+train=bias|new", Training(learning_rate=1e-4)).training
    >>> found.anchor, found.learning_rate, found.train
    ('l2-sp:4', 0.0005, ('bias', 'new'))
    >>> contender_of("none+adapter=lora:r=4,targets=key|value+lr=3", Training()).training.adapter
    ('lora:r=4,targets=key|value',)
    >>> contender_of("none+merge=uniform", Training())[1:]
    (How(name='uniform', number=1.0), 3)
    """
    anchor, *words = text.split("+")
    name, _ = parse(anchor)
    if METHODS[name].dosed and ":" not in anchor:
        anchor = f"{anchor}:{shared.dose:g}"
    changes: dict[str, Any] = {"anchor": anchor}
    merge, runs = "", 0
    for word in words:
        option, _, value = word.partition("=")
        try:
            match option:
                case "lr":
                    changes["learning_rate"] = shared.learning_rate * float(value)
                case "decay":
                    changes["layer_decay"] = float(value)
                case "importance":
                    changes["importance_weight"] = float(value)
                case "train" | "phases":
                    changes[option] = tuple(value.split("|"))
                case "adapter" if value:
                    changes[option] = (*changes.get(option, ()), value)
                case "plus":
                    changes["lora_plus"] = float(value)
                case "coupled":
                    changes |= {"coupled": True, "strength": float(value)}
                case "average":
                    changes["average"] = value
                case "merge":
                    merge = value
                case "runs":
                    runs = int(value)
                case _:
                    raise ValueError
        except ValueError:
            raise ValueError(
                f"--methods {text!r}: {word!r} is not lr=FACTOR, decay=FACTOR, coupled=STRENGTH, "
                "importance=WEIGHT, average=ema:DECAY or swa, train=RULE|RULE, phases=NAME|NAME, "
                "adapter=NAME:SETTING=VALUE,..., plus=RATIO, merge=HOW or runs=COUNT"
            ) from None
    for word in changes.get("adapter", ()):
        parse_adapter(word)
    if "adapter" in changes:  # what the others train is not what is trained beside an adapter
        changes.setdefault("train", ())
    training = dataclasses.replace(shared, **changes)
    if not merge:
        if runs:
            raise ValueError(f"--methods {text!r}: runs={runs} are to be merged; add merge=uniform")
        return Contender(training)
    one = merge.partition(":")[0] in ("wise", "add", "negate")
    runs = runs or (1 if one else SEVERAL)
    return Contender(training, read_how(merge, runs), runs)
