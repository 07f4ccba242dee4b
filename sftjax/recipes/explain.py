"""What a person at the command line is told of an error, where its own text is for programmers."""

import re

from jax.errors import JaxRuntimeError

_OPTIONS = (
    "end_of_turn", "labels", "max_length", "max_new_tokens", "min_p", "num_beams", "on_long",
    "on_nan", "on_problem", "repetition_penalty", "temperature", "top_p",
)  # fmt: skip
"""Settings of functions that are options of a command, under the same name and with one meaning."""

_SETTING = re.compile(rf"\b({'|'.join(_OPTIONS)})=(?=[\[('\"\w])")


def explained(error: Exception) -> str | None:
    """Return one paragraph to end a command with; `None` where the error is a fault of ours.

    Known are bad input (`ValueError`), a loss that is not finite, a package of an extra that is not
    installed, a model or data set that could not be fetched, and a device without room.

    >>> print(explained(ValueError("say what to do: on_long='truncate'")))
    say what to do: on_long='truncate' (on the command line: --on-long truncate)
    >>> explained(RuntimeError("a fault")) is None
    True
    """
    text = str(error)
    if isinstance(error, JaxRuntimeError):
        return _no_room(text) if "RESOURCE_EXHAUSTED" in text else None
    if isinstance(error, ImportError):
        return text if "pip install" in text else None
    if isinstance(error, RuntimeError):
        return text if text.startswith("could not fetch") else None
    if isinstance(error, ValueError):
        return _with_options(text)
    return text


def _with_options(text: str) -> str:
    """Say how a setting of a function is spelled as an option, where the text does not."""
    if "--" in text or not (found := _SETTING.search(text)):
        return text
    value = re.match(r"['\"](\w+)['\"]", text[found.end() :])
    option = f"--{found[1].replace('_', '-')} {value[1] if value else '...'}"
    return f"{text} (on the command line: {option})"


def _no_room(text: str) -> str:
    first = text.splitlines()[0]
    return (
        f"the device has no room left ({first[:200]}). Take fewer rows at a time "
        "(--per-device-train-batch-size, with --gradient-accumulation-steps for the same update), "
        "shorter rows, fewer leaves that move (--train last:2, --adapter lora:r=8) or a base in "
        "few bits (--quantize nf4); `sftjax plan` says beforehand what a run takes"
    )
