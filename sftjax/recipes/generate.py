"""Write with a saved model: of texts from the command line or a file, to the screen or a file.

sftjax generate runs/s/model --text "A tool to copy files between machines. ..."
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Annotated

import tyro

from sftjax.adapters import merge_adapter
from sftjax.data import Pairs, Table, fill, read
from sftjax.data.encoded import pack
from sftjax.data.table import texts
from sftjax.evaluate.generate_settings import read_settings
from sftjax.hub import load_tokenizer
from sftjax.recipes.adapter_folder import is_adapter, load_adapted
from sftjax.recipes.progress import say
from sftjax.recipes.run_folder import write_text
from sftjax.recipes.summary_rows import load_writer, pairs_in_order
from sftjax.recipes.writing import Writer


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write with a folder that `sftjax summarize` (or anyone) saved: a model, or an adapter."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model's folder, a name on the Hub, or asset:NAME; or an adapter's folder."""
    text: tuple[str, ...] = ()
    """One or more texts to write about, after one --text."""
    data: str | None = None
    """Or a file of them (.csv, .tsv, .jsonl, .parquet)."""
    column: str = "text"
    """The file's column of text."""
    template: str = "t5"
    """What the encoder reads, as in training: none, t5, summary, title, xsum, highlights, or
    your own text."""
    max_source_length: int = 512
    """Most tokens of a text; longer ones are refused."""
    max_new_tokens: int = 64
    """Most tokens to write."""
    num_beams: int = 1
    """Beams; 1 takes the likeliest token each time."""
    no_repeat_ngram_size: int = 0
    """No run of so many tokens comes twice; 0 lets it."""
    length_penalty: float = 1.0
    """With beams: above 1 favours longer texts."""
    base: str | None = None
    """Where the adapter's base is, if it is not where it was."""
    output: pathlib.Path | None = None
    """Write to this .jsonl file instead of the screen."""
    batch_size: int = 32
    """Texts at a time."""


def generate_text(job: Generate, tell: Callable[[str], None] = say) -> list[str]:
    """Write, and print or save what came out.

    Returns:
      One text for each.

    Raises:
      ValueError: if there is nothing to write about, the model is no encoder-decoder, or a text is
        too long.
    """
    if bool(job.text) == (job.data is not None):
        raise ValueError(
            "give either --text with one or more texts after it, or --data, a file of texts"
        )
    rows = (
        Table({job.column: list(job.text)}, name="--text") if job.data is None else read(job.data)
    )
    if is_adapter(job.model):
        found = load_adapted(job.model, job.base, load_writer)
        model, report = found.model, found.report
        params = merge_adapter(found.params["base"], found.params["adapter"], found.plan)
    elif job.base is not None:
        raise ValueError(
            f"--base {job.base}: {job.model} is a whole model and no adapter; leave --base out"
        )
    else:
        model, params, report = load_writer(job.model)
    tokenizer = load_tokenizer(report.folder)
    settings = read_settings(
        report.folder,
        max_new_tokens=job.max_new_tokens,
        num_beams=job.num_beams,
        no_repeat_ngram_size=job.no_repeat_ngram_size,
        length_penalty=job.length_penalty,
    )
    ids = [list(found[0]) for found in tokenizer.encode(fill(rows, job.template, job.column))]
    most = min(job.max_source_length, model.max_length or job.max_source_length)
    long = [i for i, row in enumerate(ids) if len(row) > most]
    if long:
        or_raise = "" if most < job.max_source_length else ", or raise --max-source-length"
        raise ValueError(
            f"{rows.locate(long)}: up to {max(map(len, ids))} tokens, and at most {most} are "
            f"allowed; shorten the text{or_raise}"
        )
    start = model.decoder_start_token_id
    source = pack(ids, pad_id=tokenizer.pad_id, max_length=most)
    asked = Pairs(source, pack([[start]] * len(ids), pad_id=start, max_length=1), start)
    stream = pairs_in_order(asked, min(job.batch_size, len(ids)))
    written = Writer(model, tokenizer, settings)(params, stream, len(ids)).texts
    if job.output is None:
        for text in written:
            tell(text)
        return written
    lines = [
        json.dumps({job.column: text, "generated": said}, ensure_ascii=False)
        for text, said in zip(texts(rows, job.column), written, strict=True)
    ]
    write_text(job.output, "\n".join(lines) + "\n")
    tell(f"{len(written):,} texts: {job.output}")
    return written
