"""What does each adapter learn from 200 sentences, what does it keep, and what does it cost?

    python benchmarks/adapters.py --folder runs/adapters   # about 25 minutes on 2 quiet cores

MiniLM-L6 learns the sentiment of 200 film-review sentences (classes alike), 40 updates of 16 rows;
full fine-tuning, BitFit, LoRA, DoRA, Houlsby and Pfeiffer bottlenecks, no anchor. Each way gets the
rate that is best, of three to five, on 300 further training sentences (seed 0); then 3 seeds draw
the rows, their order, the head and the adapter. Tests: 200 film sentences and 200 from each of
three domains that were never seen; retention is retrieval P@1, how often the nearest other sentence
of an editorial collection is of the same editorial. A step is timed apart, all ways in turns. The
same folder goes on where it was.

Expect: the adapters within a few points of full fine-tuning, at 1 % of its parameters.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import pairs

WAYS = {
    "full": ("train=all", (0.3, 1, 3)),
    "BitFit": ("train=bias|new", (3, 10, 30, 100, 300)),
    "LoRA r=8": ("adapter=lora:r=8", (3, 10, 30, 100)),
    "DoRA r=8": ("adapter=dora:r=8", (3, 10, 30, 100)),
    "Houlsby r=32": ("adapter=houlsby:r=32", (3, 10, 30, 100)),
    "Pfeiffer r=64": ("adapter=pfeiffer:r=64", (3, 10, 30, 100, 300)),
}
"""Name -> words of `sftjax compare`, and multiples of the shared rate to choose from."""
ELSEWHERE = ("amazon", "tweets", "nyt")
METRICS = ("movie", "elsewhere", "retrieval", "cka", "moved")


def main() -> None:
    """Tune, run what is not yet done, time, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, default=3, help="runs of each way (3)")
    options.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options.add_argument("--rows", type=int, default=200, help="sentences to learn from (200)")
    options.add_argument("--max-steps", type=int, default=40, help="updates of a run (40)")
    options.add_argument("--tests", type=int, default=200, help="test sentences a domain (200)")
    options.add_argument("--turns", type=int, default=5, help="timed rounds of each way (5)")
    options.add_argument("--folder", type=pathlib.Path, help="to go on in (a temporary one)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary) / "runs"
        grid = [word(way, rate) for way in args.ways for rate in WAYS[way][1]]
        tried = runs(args, folder / "tuning", grid, seeds=1, tuning=True)
        rates = {way: best(way, tried) for way in args.ways}
        chosen = [word(way, rate) for way, rate in rates.items()]
        rows = runs(args, folder / "seeds", chosen, seeds=args.seeds, tuning=False)
    times = timed(args)
    table, means = report(rows, rates, times)
    facts = {"tuning": tried, "rates": rates, "runs": rows, "means": means, "seconds": times}
    pairs.publish("adapters", watch.facts(), [table], facts, args.output)


def word(way: str, rate: float) -> str:
    """Return a way at a rate as `sftjax compare` takes it."""
    return f"none+{WAYS[way][0]}+lr={rate:g}"


def best(way: str, tried: list[dict[str, Any]]) -> float:
    """Return the rate that was best on the sentences to choose by; of equals, the lowest."""
    found = {row["method"]: row["movie"] for row in tried}
    return max(WAYS[way][1], key=lambda rate: (found[word(way, rate)], -rate))


def runs(args: Any, folder: pathlib.Path, methods: list[str], *, seeds: int, tuning: bool) -> Any:
    """Compare methods on the rated sentences; tuning sees neither the tests nor their rows."""
    from sftjax.data import fetch, read
    from sftjax.data.rated_sentences import prepare_sentences, retrieval_set
    from sftjax.recipes.compare import Compare, Data, compare_on

    archive = fetch("rated-sentences")
    builders = prepare_sentences(archive, configs=("movie", *ELSEWHERE))
    train = read(builders["movie"], "train")
    aside = min(300, len(train) // 4)
    articles = retrieval_set(archive)
    if tuning:
        tests = {"movie": train.take(range(aside))}
    else:
        tests = {
            name: read(builders[name], "test").take(range(args.tests))
            for name in ("movie", *ELSEWHERE)
        }
    job = Compare(
        model=str(fetch("minilm-l6")),
        data="rated sentences, movie",
        output_dir=folder,
        methods=tuple(methods),
        seeds=seeds,
        rows=args.rows,
        columns=columns(),
        training=training(args.max_steps),
    )
    # The sentences to choose by are trained on by no run.
    rest = train.take(range(aside, len(train)))
    data = Data(rest, tests, articles.take(range(4 * args.tests)), "document")
    return compare_on(job, data)


def columns() -> Any:
    """Return how the sentences are read."""
    from sftjax.recipes.text_rows import Columns

    return Columns(max_length=64)


def training(max_steps: int) -> Any:
    """Return what all ways share."""
    from sftjax.recipes.training import Training

    return Training(
        anchor="none", learning_rate=1e-4, max_steps=max_steps, per_device_train_batch_size=16
    )


def timed(args: Any) -> dict[str, float]:
    """Return the median seconds of a step of each way, on one batch of 16 x 64, in turns."""
    import jax
    import minilm
    import optax

    from sftjax.objectives import classification
    from sftjax.recipes.choosing import chosen_of
    from sftjax.recipes.contender import contender_of
    from sftjax.recipes.worn import wear
    from sftjax.train import compile_step, init, keep_freed_memory, make_step

    keep_freed_memory()
    model = minilm.model_of()
    params = model.init(jax.random.key(0))
    new = ("classifier/bias", "classifier/kernel")
    batch = jax.device_put(minilm.batch_of(16, 64))

    def call_of(way: str) -> Any:
        how = contender_of(word(way, 1), training(1)).training
        worn = wear(how.adapter, params, new)
        moving = chosen_of(worn.params, worn.new, how).trainable
        tx = optax.adamw(1e-4)
        state, fixed = init(worn.params, moving, tx, jax.random.key(0))
        step = compile_step(make_step(classification(worn.beside(model.apply)), tx))
        held = [state]

        def call() -> Any:
            held[0], metrics = step(held[0], fixed, batch)
            return metrics

        return call

    rounds = {way: pairs.rounds_of(call_of(way), 1) for way in args.ways}
    timings = pairs.alternate(rounds, args.turns, tell=print)
    return {way: pairs.median(found).wall for way, found in timings.items()}


def report(
    rows: list[dict[str, Any]], rates: dict[str, float], times: dict[str, float]
) -> tuple[list[dict[str, Any]], Any]:
    """Return the table, and the means as facts."""
    from sftjax.evaluate import summarize

    means = summarize(rows, "method", list(METRICS))
    by = {row["method"]: row for row in means}
    trained = {row["method"]: row["trained"] for row in rows}
    table = []
    for way, rate in rates.items():
        method = word(way, rate)
        numbers = {
            name: f"{by[method][name]:.3f} ± {by[method][f'{name}_sd']:.3f}" for name in METRICS
        }
        table.append(
            {
                "way": way,
                "rate": f"{1e-4 * rate:g}",
                "trained": f"{trained[method]:,}",
                **numbers,
                "a step, ms": f"{1e3 * times[way]:.0f}",
            }
        )
    return table, means


if __name__ == "__main__":
    main()
