"""How many tokens a second does generation write beside torch transformers, the same tokens?

    python benchmarks/generation.py                 # Flan-T5-small, 50 sources; needs torch
    python benchmarks/generation.py --sources 2 --batches 1 --turns 1 --output o.json   # a look

A row for greedy and beam 4 at each batch size: tokens a second of both after compilation (medians
of turns; what is written counts, its end too, padding not), how many times as many sftjax writes,
seconds to compile (without what is kept on disk, and again from it), bytes of the cache as counted
and as the formula says, and how many texts of all sources are equal token for token.

Expect: at least twice torch's tokens a second.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pairs

from sftjax.core import Batch, PyTree
from sftjax.data import fetch
from sftjax.evaluate.generate import compile_generate
from sftjax.evaluate.generate_settings import GenerationSettings, read_settings
from sftjax.hub import load, load_tokenizer
from sftjax.models import Seq2SeqModel

OPENINGS = (
    "summarize: ",
    "Write a title: ",
    "Translate English to German: ",
    "Is this positive or negative? ",
    "",
)
SENTENCES = (
    "A storm brought down trees across the north of the county last night.",
    "The committee met for four hours and agreed on the date of its next meeting.",
    "I would not watch this film again, but the music was a pleasure.",
    "The build fails on the second machine because a header file is missing.",
    "He asks how to sort a list of dictionaries by two of their keys.",
    "The museum opens its new wing in spring with a show of early maps.",
    "Prices of bread rose more slowly in June than in any month of the year before.",
    "My train was late, so I walked home along the river.",
    "The two teams drew, and neither coach was content.",
    "She planted beans in May and ate the last of them in October.",
)


def sources(count: int) -> list[str]:
    """Return texts of different lengths, the same ones each time."""
    pairs = zip(SENTENCES, SENTENCES[3:] + SENTENCES[:3], strict=True)
    texts = [
        f"{opening}{one} {two if index % 2 else ''}".strip()
        for index, (opening, (one, two)) in enumerate(itertools.product(OPENINGS, pairs))
    ]
    return texts[:count]


def padded(encoded: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
    """Return a batch of fixed length."""
    ids, mask = np.zeros((2, len(encoded), length), np.int32)
    for row, one in enumerate(encoded):
        ids[row, : len(one)], mask[row, : len(one)] = one, 1
    return {"input_ids": ids, "attention_mask": mask}


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compiling(model: Seq2SeqModel, settings: GenerationSettings, params: PyTree, part: Batch):
    """Return a run that is compiled, and the seconds of that: with nothing on disk, and from it.

    Of each first call what a second one takes is taken off.
    """
    took, run = [], None
    for _ in range(2):
        jax.clear_caches()
        run = compile_generate(model.decoder, settings)

        def once(run=run):
            return jax.block_until_ready(run(params, part))

        took.append(seconds(once) - seconds(once))
    return run, took


def upto(tokens: Sequence[int], end: int) -> list[int]:
    """Return the tokens until the end, which is left out."""
    tokens = list(tokens)
    return tokens[: tokens.index(end)] if end in tokens else tokens


def main() -> None:
    """Measure, print and write."""
    options = pairs.parser(__doc__, turns=3, steps=1)
    options.add_argument("--sources", type=int, default=50, help="texts (50)")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="(1 16)")
    options.add_argument("--new-tokens", type=int, default=32, help="most that are written (32)")
    asked = options.parse_args()
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        rows, facts = compare(asked)
    pairs.publish("generation", watch.facts(), [rows], {"rows": facts}, asked.output)


def compare(asked: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run both in turns; return a row for the page and one of all timings for each setting."""
    import torch
    import transformers

    folder = fetch("flan-t5-titles", progress=False)
    model, params, _ = load(folder)
    assert isinstance(model, Seq2SeqModel)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    encoded = [one.ids for one in load_tokenizer(folder).encode(sources(asked.sources))]
    length = -(-max(map(len, encoded)) // 16) * 16
    end = model.config["eos_token_id"]
    rows, facts = [], []
    for beams, size in itertools.product((1, 4), asked.batches):
        settings = read_settings(folder, num_beams=beams, max_new_tokens=asked.new_tokens)
        parts = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        parts = [padded([*part, *[[end]] * (size - len(part))], length) for part in parts]
        run, (cold, kept) = compiling(model, settings, params, parts[0])
        wrote: dict[str, list[list[int]]] = {"sftjax": [], "torch": []}

        def ours(run=run, parts=parts, wrote=wrote) -> pairs.Timing:
            found, timing = timed(lambda: [jax.block_until_ready(run(params, p)) for p in parts])
            wrote["sftjax"] = [row for one in found for row in np.asarray(one.tokens).tolist()]
            return timing

        def peers(parts=parts, beams=beams, wrote=wrote) -> pairs.Timing:
            asks = [{k: torch.from_numpy(v).long() for k, v in part.items()} for part in parts]
            told = {"num_beams": beams, "max_new_tokens": asked.new_tokens, "do_sample": False}
            with torch.no_grad():
                found, timing = timed(lambda: [theirs.generate(**ask, **told) for ask in asks])
            wrote["torch"] = [row for one in found for row in one[:, 1:].tolist()]
            return timing

        turns = pairs.alternate({"sftjax": ours, "torch": peers}, asked.turns, tell=print)
        texts = {side: [upto(row, end) for row in of[: len(encoded)]] for side, of in wrote.items()}
        written = sum(len(text) + 1 for text in texts["sftjax"])
        counted = cache_bytes(model, params, parts[0], asked.new_tokens, beams)
        formula = model.cache_bytes(size, length, asked.new_tokens, beams)
        same = sum(map(list.__eq__, texts["sftjax"], texts["torch"]))
        walls = {side: pairs.median(times).wall for side, times in turns.items()}
        rows.append({
            "beams": beams,
            "batch": size,
            "sftjax, tokens/s": f"{written / walls['sftjax']:.0f}",
            "torch, tokens/s": f"{written / walls['torch']:.0f}",
            "times as many (least..most of a turn)": _times(turns),
            "compile, s": f"{cold:.1f}",
            "from disk, s": f"{kept:.1f}",
            "cache, MB": f"{counted / 1e6:.2f}",
            "by the formula": f"{formula / 1e6:.2f}",
            "equal texts": f"{same}/{len(encoded)}",
        })  # fmt: skip
        facts.append({**rows[-1], "timings": turns})
    return rows, facts


def timed(run: Callable[[], list[Any]]) -> tuple[list[Any], pairs.Timing]:
    """Return what a call gives, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = run()
    return out, pairs.Timing(time.perf_counter() - wall, time.process_time() - cpu)


def cache_bytes(
    model: Seq2SeqModel, params: PyTree, part: Batch, new_tokens: int, beams: int
) -> int:
    """Return the bytes that the arrays of the cache really have."""
    cache = jax.eval_shape(lambda p, b: model.decoder.start(p, b, new_tokens)[1], params, part)
    parts = ((cache.own, beams), (cache.source.blocks, 1))
    return sum(
        times * leaf.size * leaf.dtype.itemsize
        for held, times in parts
        for leaf in jax.tree.leaves(held)
    )


def _times(turns: dict[str, list[pairs.Timing]]) -> str:
    found = pairs.ratio(turns["torch"], turns["sftjax"])
    return f"{found.medians:.2f} ({found.low:.2f}..{found.high:.2f})"


if __name__ == "__main__":
    main()
