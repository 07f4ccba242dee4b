"""What is supported, read from the registries themselves: families, commands, formats of files.

sftjax supported

Nothing here is kept by hand but which loader a command opens its model with; a test holds the
tables that README and docs show to what this module says.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sftjax.adapters import ADAPTERS
from sftjax.data.conversation import FORMATS
from sftjax.data.decode import IMAGE_ENDINGS
from sftjax.data.files import READERS as TABLE_FILES
from sftjax.data.masks import VOLUMES
from sftjax.data.pairs import COLUMNS
from sftjax.hub import WEIGHT_MAPS
from sftjax.hub.foreign import READERS as FOREIGN_FILES
from sftjax.hub.gguf_model import GGUF_FAMILIES
from sftjax.hub.weights import INDEX, MSGPACK, SINGLE, TORCH_INDEX
from sftjax.models import FAMILIES, CausalModel, ImageModel, Seq2SeqModel, TextEncoder
from sftjax.models.causal_model import KINDS as DECODER_KINDS
from sftjax.models.head import ENCODER_KINDS, IMAGE_KINDS
from sftjax.models.text_encoder import ENCODERS
from sftjax.recipes.chat_rows import LoadedDecoder
from sftjax.recipes.image_models import LoadedImages
from sftjax.recipes.summary_rows import LoadedWriter
from sftjax.recipes.text_models import LoadedEncoder


@dataclasses.dataclass(frozen=True)
class Supported:
    """Print which families, commands and file formats are supported."""


KINDS: dict[type, str] = {
    TextEncoder: "encoder",
    Seq2SeqModel: "encoder-decoder",
    CausalModel: "decoder",
    ImageModel: "images",
}
"""Class of model -> what it is called."""

OTHER = "other"
"""A family whose builder returns a class that is not ours; `inspect` alone takes it."""

COMMANDS: dict[str, tuple[type, ...]] = {
    "classify": (LoadedEncoder,),
    "compare": (LoadedEncoder,),
    "merge": (LoadedEncoder,),
    "summarize": (LoadedWriter,),
    "generate": (LoadedWriter,),
    "chat": (LoadedDecoder,),
    "talk": (LoadedDecoder,),
    "images": (LoadedImages,),
    "diagnose": (LoadedImages,),
    "anomaly": (LoadedImages,),
    "segment": (LoadedImages,),
    "predict": (LoadedEncoder, LoadedImages),
    "plan": (LoadedEncoder, LoadedWriter, LoadedDecoder),
    "inspect": (LoadedEncoder, LoadedWriter, LoadedDecoder, LoadedImages),
}
"""Command -> what its loaders return; the class of model is read from their annotations."""


def kind_of(family: str) -> str:
    """Return what kind of model a family is, by what its builder returns.

    >>> kind_of("qwen3")
    'decoder'
    """
    return KINDS.get(inspect.signature(FAMILIES[family]).return_annotation, OTHER)


def families_of(command: str) -> tuple[str, ...]:
    """Return the families whose checkpoints a command takes.

    >>> families_of("classify")
    ('bert', 'roberta', 'xlm-roberta', 'distilbert')
    """
    taken = {KINDS[typing.get_type_hints(loaded)["model"]] for loaded in COMMANDS[command]}
    if command == "inspect":  # it asks a model for nothing but `models.Model`
        taken.add(OTHER)
    return tuple(family for family in FAMILIES if kind_of(family) in taken)


def heads_of(family: str) -> tuple[str, ...]:
    """Return the kinds of head that a family can be built with; none where they are not known.

    >>> heads_of("gpt2")
    ('causal-lm', 'sequence', 'hidden')
    """
    kinds = {
        "encoder": ENCODER_KINDS,
        "encoder-decoder": ("seq2seq-lm",),
        "decoder": DECODER_KINDS,
        "images": IMAGE_KINDS,
        OTHER: (),
    }[kind_of(family)]
    if family in ENCODERS and not ENCODERS[family].has_pooler:
        kinds = tuple(kind for kind in kinds if kind != "pooled")
    return kinds


def layouts_of(family: str) -> tuple[str, ...]:
    """Return the collections whose names for a family's tensors are read, beside the Hub's.

    >>> layouts_of("convnext")
    ('timm',)
    """
    return tuple(dict.fromkeys(other.layout for other in WEIGHT_MAPS[family].others))


def weight_formats() -> list[tuple[str, str, str]]:
    """Return a row for each format of weights that is read: name, files, families."""
    every = "all"
    rows = [
        ("safetensors", f"`{SINGLE}`, shards with `{INDEX}`, any `*.safetensors`", every),
        ("Flax msgpack", f"`{MSGPACK}`", every),
        ("GGUF", "`*.gguf`", ", ".join(GGUF_FAMILIES)),
    ]
    for name in dict.fromkeys(name for name, _ in FOREIGN_FILES.values()):
        endings = [f"`*{ending}`" for ending, (of, _) in FOREIGN_FILES.items() if of == name]
        if name == "torch":
            endings.append(f"shards with `{TORCH_INDEX}`")
        keras = [family for family in FAMILIES if "Keras" in layouts_of(family)]
        rows.append((name, ", ".join(endings), ", ".join(keras) if name == "keras" else every))
    return rows


def data_formats() -> list[tuple[str, str]]:
    """Return a row for each kind of data: what it is, and the formats that are read."""
    files = _code(TABLE_FILES)
    pairs = ", ".join(f"`{source}`/`{target}`" for source, target in COLUMNS)
    return [
        ("labelled text", f"{files}; a folder of splits; `tfds:NAME`"),
        ("texts with summaries", f"the same; columns {pairs}, or your own"),
        ("conversations", f"the same; rows of {_code(FORMATS)}"),
        ("pictures", f"{_code(IMAGE_ENDINGS)} in folders of classes or a manifest; MedMNIST `.npz`,"
         " IDX, VOC boxes, `tfds:NAME`"),
        ("masks", f"the same pictures beside PNG masks, or volumes: {_code(VOLUMES)}"),
    ]  # fmt: skip


def markdown() -> str:
    """Return the tables as README and docs show them."""
    families = [
        (kind, _code(family for family in FAMILIES if kind_of(family) == kind),
         _code(command for command in COMMANDS if _takes(command, kind)),
         _code(_heads(kind)) or "their own")
        for kind in (*KINDS.values(), OTHER)
        if any(kind_of(family) == kind for family in FAMILIES)
    ]  # fmt: skip
    layouts = dict.fromkeys(name for family in FAMILIES for name in layouts_of(family))
    named = [
        (name, _code(family for family in FAMILIES if name in layouts_of(family)))
        for name in layouts
    ]
    parts = [
        table(("kind", "families (`model_type`)", "commands", "heads"), families),
        table(("weights read", "files", "families"), weight_formats()),
        table(("tensor names read, beside the Hub's", "families"), named),
        table(("data", "formats"), data_formats()),
        "Written: `model.safetensors`, in shards above 5 GB, with the Hub's names; adapters in "
        f"PEFT's layout where PEFT has the kind. Adapters: {_code(ADAPTERS)}.",
    ]
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, *rows]
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(header), *texts[1:]])


def supported(job: Supported, tell: Callable[[str], Any] = print) -> None:
    """Print the tables."""
    del job
    tell(markdown())


def _takes(command: str, kind: str) -> bool:
    return any(kind_of(family) == kind for family in families_of(command))


def _heads(kind: str) -> tuple[str, ...]:
    families = [family for family in FAMILIES if kind_of(family) == kind]
    return tuple(dict.fromkeys(head for family in families for head in heads_of(family)))


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
