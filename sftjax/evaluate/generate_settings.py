"""How text is to be generated: the fields of `generation_config.json` that are understood here."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class GenerationSettings(NamedTuple):
    """Named as in transformers' GenerationConfig, and meaning the same.

    >>> GenerationSettings(num_beams=4, max_new_tokens=32, eos_token_id=(1,)).room(1)
    32
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    """Of prompt and new tokens together; counts only without `max_new_tokens`. 20 new tokens
    without either."""
    min_new_tokens: int | None = None
    min_length: int = 0
    """Of prompt and new tokens together; counts only without `min_new_tokens`."""
    do_sample: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    """A beam's score is its log-probability over its length to this power."""
    early_stopping: bool | str = False
    """Stop a row when it has `num_beams` finished beams (True), when the best running one is
    unlikely to get better (False), or when it cannot ("never")."""
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    """Any of these ends a row."""
    pad_token_id: int = 0
    """Fills a row after its end."""

    def room(self, prompt: int) -> int:
        """Return the most new tokens after a prompt of so many."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 20 if self.max_length is None else self.max_length - prompt

    def least(self, prompt: int) -> int:
        """Return the fewest new tokens after a prompt of so many."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(self.min_length - prompt, 0)


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1, None),
    "diversity_penalty": (0.0, None),
    "num_return_sequences": (1, None),
    "penalty_alpha": (None, 0.0),
    "typical_p": (1.0, None),
    "top_h": (None,),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "encoder_repetition_penalty": (1.0, None),
    "encoder_no_repeat_ngram_size": (0, None),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None, {}),
    "constraints": (None, []),
    "force_words_ids": (None, []),
    "forced_decoder_ids": (None, []),
    "guidance_scale": (1.0, None),
    "renormalize_logits": (False, None),
    "remove_invalid_values": (False, None),
    "watermarking_config": (None,),
    "stop_strings": (None, []),
    "max_time": (None,),
}
"""Fields that change what is generated and are not built here, with the values that do not."""

_TUPLES = ("suppress_tokens", "begin_suppress_tokens", "eos_token_id")


def settings_of(fields: Mapping[str, Any], **changes: Any) -> GenerationSettings:
    """Read settings from the fields of a `generation_config.json` or an old `config.json`.

    Args:
      fields: field -> value; those that say nothing about generation are passed by.
      changes: fields that take precedence over them, under the same names.

    Raises:
      ValueError: if a field asks for what is not supported, or has a value that cannot be.

    >>> settings_of({"eos_token_id": 1, "bad_words_ids": [[7]]}, num_beams=2)._replace(
    ...     pad_token_id=0
    ... ).suppress_tokens
    (7,)
    """
    unknown = sorted(changes.keys() - {*GenerationSettings._fields})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: no settings of generation; there are "
            f"{', '.join(GenerationSettings._fields)}"
        )
    asked = {**fields, **changes}
    for name, harmless in NEUTRAL.items():
        if asked.get(name) not in harmless:
            raise ValueError(
                f"generation setting {name}={asked[name]!r} is not supported (only "
                f"{harmless[0]!r}); set it so in generation_config.json to go on without it"
            )
    words = asked.get("bad_words_ids") or ()
    if any(len(word) != 1 for word in words):
        raise ValueError(
            "bad_words_ids with words of several tokens are not supported; keep those of one token"
        )
    new: dict[str, Any] = {
        name: asked[name] for name in GenerationSettings._fields if asked.get(name) is not None
    }
    for name in _TUPLES:
        if name in new:
            value = new[name]
            new[name] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    forced = new.get("forced_eos_token_id")
    if isinstance(forced, (list, tuple)):
        if len(forced) != 1:
            raise ValueError(f"forced_eos_token_id {forced!r}: one token can be forced, not more")
        new["forced_eos_token_id"] = forced[0]
    if words:
        new["suppress_tokens"] = (*new.get("suppress_tokens", ()), *(word[0] for word in words))
    if "pad_token_id" not in new and new.get("eos_token_id"):
        new["pad_token_id"] = new["eos_token_id"][0]
    return checked(GenerationSettings(**new))


def read_settings(folder: str | os.PathLike[str], **changes: Any) -> GenerationSettings:
    """Read a checkpoint's settings: `generation_config.json`, else what `config.json` says of them.

    Args:
      folder: of the checkpoint.
      changes: fields that take precedence.

    Raises:
      FileNotFoundError: if there is neither file.
      ValueError: as `settings_of` does; names the file.
    """
    config = _read(pathlib.Path(folder) / "config.json")
    path = pathlib.Path(folder) / "generation_config.json"
    fields = _read(path)
    if not fields and not config:
        raise FileNotFoundError(f"{folder} has neither generation_config.json nor config.json")
    # A generation config is whole: what it leaves out is at its default, but for the tokens.
    tokens = ("eos_token_id", "pad_token_id")
    said = {name: config[name] for name in tokens if name in config} if fields else config
    return settings_of({**said, **fields}, **changes)


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Copy the file again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a JSON {type(fields).__name__}, not an object")
    return fields


def checked(settings: GenerationSettings) -> GenerationSettings:
    """Return settings that can be followed.

    Raises:
      ValueError: for a number out of range, or settings that contradict each other.

    >>> checked(GenerationSettings(temperature=0.0))
    Traceback (most recent call last):
    ValueError: temperature=0.0 must be above 0; for the likeliest token use do_sample=False
    """
    s = settings
    if s.num_beams < 1:
        raise ValueError(f"num_beams={s.num_beams} must be at least 1")
    if s.do_sample and s.num_beams > 1:
        raise ValueError(
            f"do_sample with num_beams={s.num_beams} is not supported; sample with num_beams=1, "
            "or search beams without sampling"
        )
    if s.early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping={s.early_stopping!r}; it is True, False or 'never'")
    if not s.temperature > 0:
        raise ValueError(
            f"temperature={s.temperature} must be above 0; for the likeliest token use "
            "do_sample=False"
        )
    if not s.repetition_penalty > 0:
        raise ValueError(f"repetition_penalty={s.repetition_penalty} must be above 0")
    if not 0 < s.top_p <= 1:
        raise ValueError(f"top_p={s.top_p} must be in (0, 1]")
    if not 0 <= s.min_p <= 1:
        raise ValueError(f"min_p={s.min_p} must be in [0, 1]")
    if s.top_k < 0 or s.no_repeat_ngram_size < 0:
        raise ValueError(
            f"top_k={s.top_k} and no_repeat_ngram_size={s.no_repeat_ngram_size} cannot be negative"
        )
    for name in ("max_new_tokens", "max_length"):
        value = getattr(s, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} leaves nothing to generate")
    return s
