"""`config.json`: read with care, asked for the head it describes, and written back with everything.

Fields that this package does not know are kept.
"""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jax.typing import DTypeLike

from sftjax.hub.families import WEIGHT_MAPS
from sftjax.hub.seq2seq_names import SEQ2SEQ
from sftjax.models import Head, Model, build
from sftjax.models.head import IMAGE_KINDS, KINDS, LABELLED

BARE = ("pooled", "first", "mean", "hidden", "features", "map")
"""Heads without weights of their own: transformers has one class for all of them."""

_SUFFIXES = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForMaskedLM": "masked-lm",
    "ForImageClassification": "image",
    "ForImageClassificationWithTeacher": "image",
    "ForSemanticSegmentation": "segment",
    "ForPreTraining": "masked-lm",
    "ForConditionalGeneration": "seq2seq-lm",
    "T5WithLMHeadModel": "seq2seq-lm",
    "MTModel": "seq2seq-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "Model": "hidden",
}
_CLASSES = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "masked-lm": "ForMaskedLM",
    "seq2seq-lm": "ForConditionalGeneration",
    "causal-lm": "ForCausalLM",
    "image": "ForImageClassification",
    "segment": "ForSemanticSegmentation",
}
_KINDS = tuple(dict.fromkeys((*KINDS, *IMAGE_KINDS)))
_HEAD_FIELD = "sftjax_head"  # which of the bare heads it is, where that is not "hidden"
_STAGE_FIELD = "sftjax_stage"  # from which stage of the trunk, where that is not the last


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint's `config.json`.

    Raises:
      FileNotFoundError: if the folder has none.
      ValueError: if it is not a JSON object, or describes an architecture that is not known here.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json, so the model's shape is unknown. Copy it from where the "
            "weights came from, or point at the folder that holds both."
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON: {error}. Mend it there, or copy the file again."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a JSON {type(config).__name__}, not an object of settings.")
    if config.get("model_type") not in [*WEIGHT_MAPS]:  # a list: the value may be anything
        raise ValueError(
            f"{path} says model_type {config.get('model_type')!r} (architectures "
            f"{config.get('architectures')!r}), which this package has no module for. Known: "
            f"{', '.join(sorted(WEIGHT_MAPS))}. Choose a checkpoint of one of these; if it is one "
            "and the field is missing, add it."
        )
    if config.get("auto_map"):
        warnings.warn(
            f"{path} names code of its own (auto_map). It is never run: the weights are read as a "
            f"plain {config['model_type']}. Compare its answers with the source's before you trust "
            "them.",
            stacklevel=2,
        )
    return config


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the class in transformers that wrote the checkpoint, if it says.

    >>> architecture({"architectures": ["BertModel"]})
    'BertModel'
    """
    names = config.get("architectures") or [None]
    return names[0]


def stored_kind(config: Mapping[str, Any]) -> str | None:
    """Return the kind of head a checkpoint holds: one of ours, "other", or None if it is not said.

    >>> stored_kind({"architectures": ["BertForTokenClassification"]})
    'token'
    >>> stored_kind({"architectures": ["BertForQuestionAnswering"]})
    'other'
    """
    name = architecture(config)
    if name is None:
        return None
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), "other")


def stored_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in id order; transformers' `LABEL_0`, ... where only a number is said.

    Raises:
      ValueError: if `id2label` does not number the classes from 0.

    >>> stored_labels({"id2label": {"1": "positive", "0": "negative"}})
    ('negative', 'positive')
    """
    names = config.get("id2label")
    if not names:
        return tuple(f"LABEL_{index}" for index in range(config.get("num_labels", 2)))
    ids = [str(index) for index in range(len(names))]
    if not isinstance(names, Mapping) or {str(index) for index in names} != {*ids}:
        raise ValueError(
            f"config.json's id2label is {names!r}; it must map the ids 0 to {len(ids) - 1}, "
            "without gaps, to class names. Mend it, or pass labels in id order."
        )
    by_id = {str(index): str(name) for index, name in names.items()}
    return tuple(by_id[index] for index in ids)


def build_of(
    where: str | os.PathLike[str], config: Mapping[str, Any], head: Head, dtype: DTypeLike
) -> Model:
    """Build a checkpoint's model, as `models.build` does, whose errors say of which checkpoint."""
    try:
        return build(config, head, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{os.fspath(where)}: {error}") from error


def choose_head(
    config: Mapping[str, Any],
    head: Head | str | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = None,
) -> Head:
    """Decide which head to load from what was asked and what the checkpoint says.

    Args:
      config: the raw config.
      head: a head, its kind, or None for the one that the checkpoint was saved with ("hidden" if
        that is not one of ours).
      labels: class names in id order; empty for the checkpoint's own.
      problem_type: in transformers' words; None for the checkpoint's own, or what the number of
        labels suggests (one: regression).

    Raises:
      ValueError: if the kind is unknown, or a new head has no labels.

    >>> choose_head({"architectures": ["BertModel"]}, "sequence", ("no", "yes")).labels
    ('no', 'yes')
    """
    stored = stored_kind(config)
    if isinstance(head, Head):
        if labels or problem_type:
            raise ValueError(
                "labels and problem_type were given beside a Head, which has its own. Put them into"
                " the Head, or pass its kind as a word."
            )
        return head
    other = "seq2seq-lm" if config.get("model_type") in SEQ2SEQ else "hidden"
    kind = head or config.get(_HEAD_FIELD) or (stored if stored in _KINDS else other)
    if kind not in _KINDS:
        raise ValueError(f"head {kind!r} is not known. Choose one of {', '.join(_KINDS)}.")
    if kind not in LABELLED:
        if labels or problem_type:
            raise ValueError(
                f'a {kind!r} head has no labels; pass head="sequence" or head="token" (of '
                'images "image" or "segment") with them.'
            )
        return Head(kind, stage=config.get(_STAGE_FIELD, "") if head is None else "")
    if not labels:
        if stored not in (kind, None) or (stored is None and "id2label" not in config):
            raise ValueError(
                f"the checkpoint has no {kind!r} head (it was saved as "
                f"{architecture(config) or 'a bare encoder'}), so a new one is needed: pass its "
                'class names in id order, as in labels=("negative", "positive").'
            )
        labels = stored_labels(config)
        problem_type = problem_type or config.get("problem_type")
    one_number = kind in ("sequence", "image") and len(labels) == 1
    default = "regression" if one_number else "single_label_classification"
    return Head(kind, tuple(labels), problem_type or default)


def describe(config: Mapping[str, Any], head: Head, *, dtype: str, mixed: bool) -> dict[str, Any]:
    """Return the config to save beside a model with this head.

    Args:
      config: the raw config it was built from; fields not named below are kept.
      head: sets `architectures`, `id2label`, `label2id`, `num_labels`, `problem_type`.
      dtype: the floating dtype that all saved tensors fit in.
      mixed: whether some are in a narrower one; readers must then be told which to use.
    """
    new = dict(config)
    new["architectures"] = [class_name(config, head.kind)]
    new.pop("auto_map", None)  # what is saved is the plain architecture, without code of its own
    new.pop(_HEAD_FIELD, None)
    new.pop(_STAGE_FIELD, None)
    if head.kind in BARE and head.kind != "hidden":
        new[_HEAD_FIELD] = head.kind
    if head.stage:
        new[_STAGE_FIELD] = head.stage
    if head.kind in LABELLED:
        new["id2label"] = {str(index): label for index, label in enumerate(head.labels)}
        new["label2id"] = {label: index for index, label in enumerate(head.labels)}
        if "num_labels" in config:
            new["num_labels"] = len(head.labels)
    if head.kind in ("sequence", "image"):
        new["problem_type"] = head.problem_type
    fields = [field for field in ("torch_dtype", "dtype") if new.get(field)]
    if mixed and not fields:
        fields = ["torch_dtype"]  # without it transformers takes the first tensor's for all
    return new | dict.fromkeys(fields, dtype)


def class_name(config: Mapping[str, Any], kind: str) -> str:
    """Return the class in transformers that opens a checkpoint of this kind.

    >>> class_name({"model_type": "xlm-roberta"}, "token")
    'XLMRobertaForTokenClassification'
    """
    stored = stored_kind(config)
    if (stored == kind or (stored == "hidden" and kind in BARE)) and (name := architecture(config)):
        return name
    table = WEIGHT_MAPS[config["model_type"]]
    return table.stem + table.classes.get(kind, _CLASSES.get(kind, "Model"))
