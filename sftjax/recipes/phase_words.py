"""The words of `--phases`: what moves in each phase of a run, and for how long."""

from collections.abc import Collection

Rules = list[tuple[str, float]]


def phases_of_words(
    words: Collection[str], rules: Rules, num_steps: int
) -> list[tuple[str, Rules, int]]:
    """Read the phases of a run: `(name, rules, updates)` of each.

    Args:
      words: `lp`, `ft`, `gradual:K` or any rule of `select`, each with an optional `@SHARE` of the
        updates (what no share claims is dealt out evenly); one by one, or with commas in between.
      rules: what `ft` stands for.
      num_steps: updates in all.

    Raises:
      ValueError: if a share or number cannot be read, or the updates do not go round.

    >>> phases_of_words(["lp@0.25,ft"], [("all", 1.0)], 100)
    [('lp', [('new', 1.0)], 25), ('ft', [('all', 1.0)], 75)]
    """
    named: list[tuple[str, Rules, float | None]] = []
    for word in ",".join(words).split(","):
        name, at, text = word.partition("@")
        try:
            share = float(text) if at else None
        except ValueError:
            raise ValueError(f"--phases {word!r}: write NAME@SHARE, as in 'lp@0.3'") from None
        kind, _, number = name.partition(":")
        if kind == "gradual":
            if not number.isdigit() or number == "0":
                raise ValueError(f"--phases {word!r}: write 'gradual:' and a number, 'gradual:3'")
            blocks = range(1, int(number) + 1)
            part = None if share is None else share / len(blocks)
            named += [(f"last-{k}", [(f"last:{k}", 1.0)], part) for k in blocks]
        elif name in ("lp", "ft"):
            named.append((name, [("new", 1.0)] if name == "lp" else rules, share))
        else:
            # A new head that an earlier phase trained must not fall back to a random start.
            named.append((name.replace("/", "-").replace(":", "-"), [(name, 1.0)], share))
    claimed = sum(share for *_, share in named if share is not None)
    waiting = sum(share is None for *_, share in named)
    if claimed > 1 + 1e-9 or (waiting and claimed >= 1):
        over = "over 1" if claimed > 1 + 1e-9 else "and leave nothing for the phases without one"
        raise ValueError(
            f"--phases {' '.join(words)}: the shares add up to {claimed:g}, {over}; lower them"
        )
    even = (1 - claimed) / waiting if waiting else 0.0
    ends, total = [], 0.0
    for *_, share in named:
        total += even if share is None else share
        ends.append(round(total * num_steps))
    steps = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    if min(steps, default=0) < 1:
        raise ValueError(
            f"--phases {' '.join(words)}: {num_steps} updates do not go round, as a phase would "
            "have none; train longer (--max-steps, --num-train-epochs) or name fewer phases"
        )
    return [(name, each, made) for (name, each, _), made in zip(named, steps, strict=True)]


def with_new(rules: Rules, new: Collection[str]) -> Rules:
    """Return the rules of a phase, in which new leaves move unless a rule speaks of them."""
    named = [rule for rule, _ in rules]
    covers = {"new", "all", "head"} & set(named) or any(n.startswith("last:") for n in named)
    return rules if covers or not new else [*rules, ("new", 1.0)]
