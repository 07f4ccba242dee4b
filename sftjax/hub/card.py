"""The model card: what a stranger must know before using the weights, as the Hub's README.md.

Facts come in as plain tuples, so that whoever ran the training fills them; nothing is guessed.
"""

import importlib.metadata
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sftjax.hub.config import BARE, stored_kind
from sftjax.hub.report import LoadReport, some

_TASKS = {
    "sequence": "text-classification",
    "token": "token-classification",
    "image": "image-classification",
    "segment": "image-segmentation",
}
_AUTO = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "image": "AutoModelForImageClassification",
}
_PACKAGES = ("sftjax", "jax", "flax", "optax", "numpy")


class Data(NamedTuple):
    """A data set that was used, and for what."""

    name: str
    rows: int
    use: str = "train"
    note: str = ""
    """Source, licence, how it was cleaned and split."""


class Metric(NamedTuple):
    """A measured number, with its interval if one was computed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    on: str = "test"
    """Which data it was measured on."""


class Card(NamedTuple):
    """What the card says."""

    title: str = ""
    base_model: str = ""
    """A name on the Hub, or a word for where the weights came from."""
    license: str = ""
    """As the Hub spells it (`apache-2.0`); empty if it is not known."""
    tags: tuple[str, ...] = ()
    data: tuple[Data, ...] = ()
    metrics: tuple[Metric, ...] = ()
    trained: str = ""
    """What moved: patterns, blocks, number of parameters."""
    frozen: str = ""
    anchored: str = ""
    """What was held near its pretrained value, by which method and dose."""
    new: tuple[str, ...] = ()
    """Leaves that had no pretrained value."""
    settings: Mapping[str, Any] = {}
    """Hyperparameters by name."""
    notes: str = ""
    """Anything else, in Markdown: limits, who it is for."""
    interval: str = "95 % bootstrap interval"
    """What the metrics' low and high are."""


def card_of(report: LoadReport | None) -> Card:
    """Return what can be said from a load alone."""
    if report is None:
        return Card()
    name = report.source
    if pathlib.Path(name).expanduser().is_dir():  # a path of this machine means nothing elsewhere
        name = report.config.get("_name_or_path") or report.folder.resolve().name
    return Card(base_model=name, license=_license(report.folder), new=report.new)


def render(card: Card, config: Mapping[str, Any]) -> str:
    """Return the text of README.md: the Hub's front matter, then the account.

    Args:
      card: the facts.
      config: the config that is saved beside it; tells head and labels.

    >>> print(render(Card("Reviews", metrics=(Metric("mcc", 0.61, 0.55, 0.67),)),
    ...              {"model_type": "bert", "architectures": ["BertModel"]})[:120])
    ---
    library_name: "transformers"
    tags: ["jax", "sftjax"]
    metrics: ["mcc"]
    ---
    <BLANKLINE>
    # Reviews
    ...
    """
    kind = stored_kind(config) or "hidden"
    front = {
        "base_model": card.base_model if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base_model) else "",
        "library_name": "transformers",
        "license": card.license,
        "pipeline_tag": _TASKS.get(kind, ""),
        "tags": list(dict.fromkeys((*card.tags, "jax", "sftjax"))),
        "datasets": [
            data.name for data in card.data if re.fullmatch(r"[\w.-]+/[\w.-]+", data.name)
        ],
        "metrics": list(dict.fromkeys(metric.name for metric in card.metrics)),
    }
    # JSON is YAML, and quotes what YAML would otherwise read as something else.
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value]
    title = card.title or f"{config['model_type']} fine-tuned with sftjax"
    blocks = ["\n".join(["---", *lines, "---"]), f"# {title}", _what(card, config, kind)]
    blocks += _data(card.data) + _metrics(card.metrics, card.interval) + _training(card)
    if card.notes:
        blocks += ["## Notes", card.notes.strip()]
    blocks += ["## How to load", _loading(kind)]
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    blocks += ["## Versions", ", ".join(versions)]
    return "\n\n".join(blocks) + "\n"


def _what(card: Card, config: Mapping[str, Any], kind: str) -> str:
    origin = f" from {card.base_model}" if card.base_model else ""
    text = f"{config['architectures'][0]}{origin}."
    if kind in _TASKS and config.get("id2label"):
        labels = [f"{index} = {name}" for index, name in config["id2label"].items()]
        text += f" Labels: {some(labels, most=40)}."
    return text


def _data(data: Sequence[Data]) -> list[str]:
    if not data:
        return []
    rows = [(d.name, f"{d.rows:,}", d.use, d.note) for d in data]
    return ["## Data", _table(("data", "rows", "used for", "note"), rows)]


def _metrics(metrics: Sequence[Metric], interval: str) -> list[str]:
    if not metrics:
        return []
    rows = [
        (
            m.on,
            m.name,
            f"{m.value:.4g}",
            "" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}",
        )
        for m in metrics
    ]
    return ["## Metrics", _table(("on", "metric", "value", interval), rows)]


def _training(card: Card) -> list[str]:
    facts = [
        ("Trained", card.trained),
        ("Frozen", card.frozen),
        ("Anchored", card.anchored),
        ("New, without a pretrained value", some(card.new, most=12)),
    ]
    lines = [f"- {name}: {text}" for name, text in facts if text]
    blocks = ["\n".join(lines)] if lines else []
    if card.settings:
        rows = [(name, f"`{value}`") for name, value in card.settings.items()]
        blocks.append(_table(("setting", "value"), rows))
    return ["## Training", *blocks] if blocks else []


def _loading(kind: str) -> str:
    auto = _AUTO.get(kind, "AutoModel")
    if kind == "image":
        return _LOADING_IMAGES
    if kind == "segment":  # transformers reads the trunk; the decoder is sftjax's own
        return _LOADING_OURS
    embedding = '  # or head="mean"' if kind in BARE else ""
    return f"""```python
from transformers import AutoTokenizer, {auto}

model, tokenizer = {auto}.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
```

```python
from sftjax.hub import load, load_tokenizer

model, params, report = load(FOLDER){embedding}
tokenizer = load_tokenizer(FOLDER)
```"""


_LOADING_OURS = """```python
from sftjax.data import processor_of
from sftjax.hub import load

model, params, report = load(FOLDER)
processor = processor_of(FOLDER)
```"""
_LOADING_IMAGES = f"""```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(FOLDER)
processor = AutoImageProcessor.from_pretrained(FOLDER)
```

{_LOADING_OURS}"""
"""Some families (VGG, EfficientNet lite) are known to sftjax alone."""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _license(folder: pathlib.Path) -> str:
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    text = readme.read_text("utf-8", errors="replace")
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = re.search(r"^license:\s*['\"]?([\w.-]+)", front, re.MULTILINE)
    return found.group(1) if found else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
