"""Fields of the `config.json` of image models, read with care."""

from collections.abc import Mapping, Sequence
from typing import Any

from sftjax.models.activation import ACTIVATIONS
from sftjax.models.architecture import given


def sizes(name: str, values: Sequence[Any]) -> tuple[int, ...]:
    """Return a list of positive integers.

    Raises:
      ValueError: naming the field.

    >>> sizes("depths", [3, 0])
    Traceback (most recent call last):
    ValueError: config field depths must hold positive integers, not [3, 0]
    """
    fine = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not fine or any(
        isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in values
    ):
        raise ValueError(f"config field {name} must hold positive integers, not {values!r}")
    return tuple(values)


def size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a positive integer of a config.

    Raises:
      ValueError: naming the field.
    """
    value = given(config, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config field {name} must be a positive integer, not {value!r}")
    return value


def known_activation(config: Mapping[str, Any], default: str) -> str:
    """Return the name of the config's activation.

    Raises:
      ValueError: if it is unknown.
    """
    name = given(config, "hidden_act", default)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {name!r} in the config; known: {', '.join(ACTIVATIONS)}"
        )
    return name


def choice(config: Mapping[str, Any], name: str, words: Sequence[str]) -> str:
    """Return one of some words, the first where the field is absent.

    Raises:
      ValueError: naming field and words.

    >>> choice({"layer_type": "wide"}, "layer_type", ("bottleneck", "basic"))
    Traceback (most recent call last):
    ValueError: config field layer_type is 'wide'; known: bottleneck, basic
    """
    value = given(config, name, words[0])
    if value not in words:
        raise ValueError(f"config field {name} is {value!r}; known: {', '.join(words)}")
    return value
