"""Generation: tokens a second beside torch transformers, the same tokens, in one run.

    python benchmarks/generation.py                 # Flan-T5-small, 50 sources; needs torch
    python benchmarks/generation.py --sources 2 --batches 1 --repeats 1        # a look

Prints a row for greedy and beam 4 at each batch size: tokens a second of both after compilation
(the best of the repeats, taken in turns), their ratio, seconds to compile (without what is kept on
disk, and again from it), bytes of the cache as counted and as the formula says, and how many texts
of all sources are equal token for token.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Run both in turns, and print a row for each setting."""

    import torch
    import transformers

    folder = fetch("flan-t5-titles", progress=False)
    model, params, _ = load(folder)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    encoded = [one.ids for one in load_tokenizer(folder).encode(sources(asked.sources))]
    length = -(-max(map(len, encoded)) // 16) * 16
    end = model.config["eos_token_id"]

    def torch_generate(batch: dict[str, np.ndarray], beams: int, room: int):
        tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
        with torch.no_grad():
            return theirs.generate(
                **tensors, num_beams=beams, max_new_tokens=room, do_sample=False
            )[:, 1:].numpy()

    print(f"Flan-T5-small, {asked.sources} sources of {length} places, {jax.devices()[0]}")
    for beams, size in itertools.product((1, 4), asked.batches):
        settings = read_settings(folder, num_beams=beams, max_new_tokens=asked.new_tokens)
        parts = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        parts = [padded([*part, *[[end]] * (size - len(part))], length) for part in parts]
        run, (cold, kept) = compiling(model, settings, params, parts[0])
        best, equal, written = [np.inf, np.inf], 0, 0
        for _ in range(asked.repeats):
            spent, written, equal = [0.0, 0.0], 0, 0
            for index, part in enumerate(parts):
                start = time.perf_counter()
                ours = jax.block_until_ready(run(params, part))
                spent[0] += time.perf_counter() - start
                start = time.perf_counter()
                reference = torch_generate(part, beams, asked.new_tokens)
                spent[1] += time.perf_counter() - start
                count = len(encoded[index * size : (index + 1) * size])
                written += int(np.asarray(ours.lengths)[:count].sum())
                equal += sum(
                    upto(a.tolist(), end) == upto(b.tolist(), end)
                    for a, b in zip(np.asarray(ours.tokens)[:count], reference[:count], strict=True)
                )
            best = [min(pair) for pair in zip(best, spent, strict=True)]
        rates = [written / spent for spent in best]
        cache = jax.eval_shape(
            lambda p, b, room=asked.new_tokens: model.decoder.start(p, b, room)[1], params, parts[0]
        )
        held = (cache.moving.own, cache.source.blocks)
        per_beam = (jax.tree.leaves(held[0]), beams), (jax.tree.leaves(held[1]), 1)
        counted = sum(
            times * leaf.size * leaf.dtype.itemsize for leaves, times in per_beam for leaf in leaves
        )
        formula = model.cache_bytes(size, length, asked.new_tokens, beams)
        print(
            f"beams {beams}  batch {size:2}  ours {rates[0]:7.1f} tokens/s  torch {rates[1]:7.1f}  "
            f"ratio {rates[0] / rates[1]:.2f}  compile {cold:.1f} s, from disk {kept:.1f} s  "
            f"cache {counted} bytes (formula {formula})  equal {equal}/{len(encoded)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
