"""Adapters by name, as a command line or a file of settings gives them: `lora:r=8,alpha=16`."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from sftjax.adapters.bottleneck import HOULSBY, PFEIFFER, bottleneck
from sftjax.adapters.dora import dora
from sftjax.adapters.ia3 import ia3
from sftjax.adapters.kind import Kind
from sftjax.adapters.lora import lora
from sftjax.adapters.plan import ALL_LINEAR, Plan, plan_adapter
from sftjax.adapters.prefix import prefix_tuning
from sftjax.adapters.prompt import prompt_tuning
from sftjax.core import PyTree, flatten


class Known(NamedTuple):
    """A named kind of adapter."""

    make: Callable[..., Kind]
    says: dict[str, Any]
    """Settings that the name itself decides."""
    targets: str | tuple[str, ...] | None = None
    """Where it sits if nothing is said; of several names, those that the model has; None: where
    the kind sits by itself."""


ADAPTERS: dict[str, Known] = {
    "lora": Known(lora, {}),
    "rslora": Known(lora, {"use_rslora": True}),
    "pissa": Known(lora, {"init_lora_weights": "pissa"}),
    "olora": Known(lora, {"init_lora_weights": "olora"}),
    "dora": Known(dora, {}),
    "ia3": Known(ia3, {}, ("key", "value", "k_lin", "v_lin")),
    "houlsby": Known(bottleneck, {}, HOULSBY),
    "pfeiffer": Known(bottleneck, {}, PFEIFFER),
    "prompt": Known(prompt_tuning, {}),
    "prefix": Known(prefix_tuning, {}),
}
"""Name -> kind; `--adapter` takes these."""

WHERE = ("target_modules", "exclude_modules", "layers_to_transform")
"""Settings that `plan_adapter` takes; the others are the kind's own."""

SHORT = {
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "tokens": "num_virtual_tokens",
}
"""Shorter words for PEFT's."""


def parse_adapter(text: str) -> tuple[Kind, dict[str, Any]]:
    """Read `NAME` or `NAME:SETTING=VALUE,...`.

    Settings are the arguments of the kind's function and of `plan_adapter`, in PEFT's words or
    shorter: `alpha`, `dropout`, `targets`, `exclude`, `layers`. Several values stand between bars.

    Returns:
      `(kind, arguments of plan_adapter)`.

    Raises:
      ValueError: if the name or a setting is unknown, or a value is of another type.

    >>> kind, where = parse_adapter("lora:r=4,alpha=8,targets=query|value,layers=0|1")
    >>> kind.config["r"], kind.config["lora_alpha"], where["target_modules"]
    (4, 8.0, ['query', 'value'])
    >>> where["layers_to_transform"]
    [0, 1]
    """
    name, _, rest = text.partition(":")
    if name not in ADAPTERS:
        raise ValueError(f"adapter {name!r} is unknown; there are: {', '.join(ADAPTERS)}")
    known = ADAPTERS[name]
    own = [p for p in inspect.signature(known.make).parameters if p not in known.says]
    settings: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        word, equals, value = (piece.strip() for piece in part.partition("="))
        word = SHORT.get(word, word)
        if not equals or word not in (*own, *WHERE):
            raise ValueError(
                f"adapter {text!r}: cannot read {part!r}; write {name}:SETTING=VALUE,... with "
                f"settings {', '.join((*own, *WHERE))}"
            )
        settings[word] = value
    try:
        where = {word: _where(word, settings.pop(word)) for word in WHERE if word in settings}
        kind = known.make(**known.says, **{word: _value(said) for word, said in settings.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"adapter {text!r}: {error}") from error
    return kind, {"target_modules": known.targets, **where}


def plan_of_words(texts: Sequence[str], params: PyTree, new: Collection[str] = ()) -> Plan:
    """Return the plan of adapters given by name; several add up.

    Args:
      texts: such as `["lora:r=8,targets=query|value", "ia3:targets=key"]`.
      params: the base, arrays or shapes.
      new: paths of leaves without a pretrained value.

    Raises:
      ValueError: as for `parse_adapter` and `plan_adapter`.

    >>> import jax
    >>> params = {"key": {"kernel": jax.ShapeDtypeStruct((4, 4), "float32")}}
    >>> [(site.path, kind.name) for site, kind in plan_of_words(["ia3"], params).sites]
    [('key', 'ia3')]
    """
    plan = Plan(())
    for text in texts:
        kind, where = parse_adapter(text)
        if isinstance(where["target_modules"], tuple):  # a default, for whatever the model has
            where["target_modules"] = _present(where["target_modules"], params)
        try:
            plan += plan_adapter(params, kind, new=new, **where)
        except ValueError as error:
            raise ValueError(f"adapter {text!r}: {error}") from error
    return plan


def _present(names: tuple[str, ...], params: PyTree) -> list[str]:
    """Return the names that a model has; all of them, to be refused, if it has none."""
    there = {segment for path in flatten(params) for segment in path.split("/")}
    return [name for name in names if name in there] or list(names)


def _where(word: str, value: str) -> Any:
    if value == ALL_LINEAR:
        return value
    pieces = value.split("|")
    if word != "layers_to_transform":
        return pieces
    try:
        return [int(piece) for piece in pieces]
    except ValueError:
        raise ValueError(f"layers_to_transform={value!r}; write numbers, as in 4|5") from None


def _value(text: str) -> Any:
    """Read a number, a truth value or a word.

    >>> _value("8"), _value("0.1"), _value("true"), _value("gaussian")
    (8, 0.1, True, 'gaussian')
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
