"""A tiny run that can be killed at any instant, and the process that kills it.

python tests/train/kill_job.py FOLDER KILLS: imports once, forks each run before a device is
touched, kills it after a random time, starts it again until it ends; prints what was seen as JSON.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import time

# Imported before any fork, and without a device: a run then starts in some hundredths of a second.
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  (its import is the slow one)
from orbax.checkpoint import v1  # noqa: F401

from sftjax.core import Aux, Loss
from sftjax.train import compile_step, fit, guard, init, make_step, open_checkpoints

STEPS = 24


def objective(params, model_state, batch, key):
    """Noisy regression: a wrong key or batch after a resume would show."""
    noise = jax.random.normal(key, batch["x"].shape) * 0.1
    error = (batch["x"] + noise) @ params["trunk"]["w"] + params["head"]["b"] - batch["y"]
    return Loss(jnp.sum(error**2), error.shape[0]), Aux({})


def batch_at(step):
    """Be slow enough that a kill finds every part of the loop."""
    time.sleep(0.004)
    x = np.random.default_rng([7, step]).normal(size=(8, 4)).astype(np.float32)
    return {"x": x, "y": x[:, :3]}


def run(folder: pathlib.Path) -> None:
    """Train to the end, from wherever the folder stands, and write what came of it."""
    tx = optax.adamw(3e-2)
    params = {"trunk": {"w": jnp.zeros((4, 3))}, "head": {"b": jnp.zeros(3)}}
    mask = jax.tree.map(lambda _: True, params)
    state, fixed = init(params, mask, tx, jax.random.key(3))
    step = compile_step(guard(make_step(objective, tx)))
    log = (folder / "log.txt").open("a")

    def watch(event):
        if event["event"] in ("start", "resume", "save"):
            log.write(f"{event['event']} {event['step']}\n")
            log.flush()

    def evaluate(state, fixed):
        return {"eval_loss": float(jnp.sum(state.trainable["trunk"]["w"] ** 2))}

    with open_checkpoints(folder / "checkpoints") as checkpoints:
        done = fit(step, state, fixed, batch_at, STEPS, checkpoints=checkpoints, save_steps=2,
                   eval_steps=5, evaluate=evaluate, log_steps=3, watch=watch)  # fmt: skip
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((done.state._replace(key=jnp.zeros(())), done.best)):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(json.dumps(done.history).encode())
    (folder / "end.txt").write_text(digest.hexdigest())


def forked(folder: pathlib.Path, after: float | None) -> float | None:
    """Run in a child, and kill it so long after its loop began.

    Returns:
      The seconds from there to its end, or None if it was killed.
    """
    log = folder / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run(folder)
            code = 0
        finally:
            os._exit(code)
    began, deadline = None, time.monotonic() + 120
    while (now := time.monotonic()) < deadline:
        if began is None and log.exists() and log.stat().st_size > before:
            began = now
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, f"the run failed with {status}"
            assert began is not None
            return now - began
        if began is not None and after is not None and now > began + after:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the run hangs")


def main(where: str, kills: int) -> None:
    """Compare a run that is killed again and again with one that never is."""
    root = pathlib.Path(where)
    whole = root / "whole"
    whole.mkdir()
    usual = forked(whole, None)
    assert usual is not None
    draw = random.Random(int(os.environ.get("SFTJAX_SEED", "0")))
    made = inside = starts = number = 0
    ends = set()
    while made < kills:
        number += 1
        folder = root / f"cut-{number}"
        folder.mkdir()
        ended = False
        while not ended:
            after = draw.uniform(0.0, 0.8) * usual if made < kills else None
            ended = forked(folder, after) is not None
            starts += 1
            if not ended:
                made += 1
                inside += any(folder.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        ends.add((folder / "end.txt").read_text())
    resumed = [
        line
        for log in root.glob("cut-*/log.txt")
        for line in log.read_text().split("\n")
        if line.startswith("resume")
    ]
    print(json.dumps({
        "kills": made, "inside a save": inside, "starts": starts, "resumed": len(resumed),
        "usual": usual, "same": ends == {(whole / "end.txt").read_text()},
        "lost": _lost(root),
    }))  # fmt: skip


def _lost(root: pathlib.Path) -> int:
    """Return how many updates a resume went back at most, behind the last save begun."""
    worst = 0
    for log in root.glob("cut-*/log.txt"):
        saved = [0]
        for line in log.read_text().split("\n"):
            kind, _, step = line.partition(" ")
            if kind == "save":
                saved.append(int(step))
            elif kind in ("resume", "start"):
                worst = max(worst, saved[-1] - int(step))
    return worst


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
