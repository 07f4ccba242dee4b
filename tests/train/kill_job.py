"""A tiny run, of one process or several, that can be stopped at any instant, and who stops it.

python tests/train/kill_job.py FOLDER KILLS [PROCESSES]: imports once, forks each run before a
device is touched, kills it after a random time, starts it again until it ends; prints what was
seen as JSON. Of several processes one is killed, and the rest soon after, as a scheduler does. Now
and then one is asked to stop (SIGTERM) instead: all of them must save and stop at the same update.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import socket
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
from sftjax.train import (
    RESUME,
    Interrupted,
    automatic,
    compile_step,
    fit,
    guard,
    init,
    join_processes,
    make_mesh,
    make_step,
    meet,
    on_host,
    open_checkpoints,
    place_state,
    processes,
    spread,
    stop_on_signals,
)

STEPS = 24, 12
"""Updates of a run of one process, and of one of several, which take longer to start."""


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


@jax.jit
def squared(tree):
    """Be what decides which weights are the best; of the whole, wherever its parts lie."""
    return jnp.sum(tree["trunk"]["w"] ** 2)


def run(folder: pathlib.Path) -> None:
    """Train to the end, from wherever the folder stands, and write what came of it."""
    me = processes()
    tx = optax.adamw(3e-2)
    params = {"trunk": {"w": jnp.zeros((4, 3))}, "head": {"b": jnp.zeros(3)}}
    mask = jax.tree.map(lambda _: True, params)
    state, fixed = init(params, mask, tx, jax.random.key(3))
    step, at = guard(make_step(objective, tx)), batch_at
    if me.size == 1:
        step = compile_step(step)
    else:  # every process holds a part of the weights, and writes it
        mesh = make_mesh("fsdp=-1")
        cut = automatic(mesh, smallest=2)
        state, fixed = place_state(state, fixed, mesh, cut)
        step, at = compile_step(step, mesh, cut), spread(batch_at, mesh)
    log = (folder / f"log-{me.number}.txt").open("a")

    def watch(event):
        if event["event"] in ("start", "resume", "save", "interrupted"):
            log.write(f"{event['event']} {event['step']}\n")
            log.flush()

    def evaluate(state, fixed):
        return {"eval_loss": float(squared(state.trainable))}

    steps = STEPS[me.size > 1]
    with open_checkpoints(folder / "checkpoints") as checkpoints, stop_on_signals() as asked:
        done = fit(step, state, fixed, at, steps, checkpoints=checkpoints, save_steps=2,
                   eval_steps=5, evaluate=evaluate, log_steps=3, watch=watch,
                   interrupted=asked)  # fmt: skip
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(on_host((done.state._replace(key=jnp.zeros(())), done.best))):
        digest.update(leaf.tobytes())
    digest.update(json.dumps(done.history).encode())
    meet("the end")
    if me.first:
        (folder / "end.txt").write_text(digest.hexdigest())


def child(folder: pathlib.Path, size: int, index: int, port: int) -> None:
    """Be one process of a run, and end."""
    code = 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # outside of the loop, which asks for itself
    try:
        if size > 1:
            join_processes(f"127.0.0.1:{port}", size, index, start_seconds=60)
        run(folder)
        code = 0
    except Interrupted:
        code = RESUME
    finally:
        sys.stderr.flush()
        os._exit(code)


def forked(folder: pathlib.Path, size: int, after: float | None, ask: bool, draw: random.Random):
    """Run in children, and stop them so long after their loop began.

    Returns:
      Their exit codes, a signal's negative, and the seconds from the loop's beginning to the end.
    """
    log = folder / "log-0.txt"
    before = log.stat().st_size if log.exists() else 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for index in range(size):
        if not (pid := os.fork()):
            child(folder, size, index, port)
        pids.append(pid)
    codes: dict[int, int] = {}
    began, deadline, victim = None, time.monotonic() + 240, draw.choice(pids)
    while len(codes) < size and (now := time.monotonic()) < deadline:
        if began is None and log.exists() and log.stat().st_size > before:
            began = now
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if began is not None and after is not None and now > began + after and not codes:
            after = None
            os.kill(victim, signal.SIGTERM if ask else signal.SIGKILL)
            if not ask:
                time.sleep(draw.uniform(0.0, 0.05))
                for pid in set(pids) - {victim}:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)
    for pid in set(pids) - codes.keys():
        os.kill(pid, signal.SIGKILL)
    assert len(codes) == size, f"the run hangs: {codes} of {pids}"
    assert began is not None, f"it ended before it began: {codes}"
    return [codes[pid] for pid in pids], time.monotonic() - began


def main(where: str, kills: int, size: int = 1) -> None:
    """Compare a run that is stopped again and again with one that never is."""
    root = pathlib.Path(where)
    whole = root / "whole"
    whole.mkdir()
    draw = random.Random(int(os.environ.get("SFTJAX_SEED", "0")))
    codes, usual = forked(whole, size, None, False, draw)
    assert codes == [0] * size, codes
    made = inside = starts = number = asked = 0
    ends = set()
    while made < kills or not asked:
        number += 1
        folder = root / f"cut-{number}"
        folder.mkdir()
        ended = False
        while not ended:
            more, ask = made < kills or not asked, made >= kills or draw.random() < 0.2
            after = draw.uniform(0.0, 0.7) * usual if more else None
            codes, seconds = forked(folder, size, after, ask, draw)
            starts += 1
            ended = codes == [0] * size
            if ended:
                usual = min(usual, seconds)
                continue
            if ask:
                assert codes == [RESUME] * size, codes
                asked += 1
                assert len({log.read_text().split("\n")[-2] for log in logs(folder)}) == 1
            else:
                assert -9 in codes, codes
                made += 1
                inside += any(folder.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        ends.add((folder / "end.txt").read_text())
    words = [line for log in root.glob("cut-*/log-0.txt") for line in log.read_text().split("\n")]
    print(json.dumps({
        "kills": made, "inside a save": inside, "asked": asked, "starts": starts,
        "resumed": sum(line.startswith("resume") for line in words),
        "usual": usual, "same": ends == {(whole / "end.txt").read_text()},
        "lost": _lost(root),
    }))  # fmt: skip


def logs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the logs of a run's processes."""
    return sorted(folder.glob("log-*.txt"))


def _lost(root: pathlib.Path) -> int:
    """Return how many updates a resume went back at most, behind the last save begun."""
    worst = 0
    for log in root.glob("cut-*/log-0.txt"):
        saved = [0]
        for line in log.read_text().split("\n"):
            kind, _, step = line.partition(" ")
            if kind == "save":
                saved.append(int(step))
            elif kind in ("resume", "start"):
                worst = max(worst, saved[-1] - int(step))
    return worst


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
