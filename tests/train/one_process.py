"""One of several processes of a run of `mesh_cases`; test_processes.py starts them.

python one_process.py CASE MESH PORT SIZE INDEX FOLDER [die|hang|on]
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from mesh_cases import CASES, STEPS, rules, tiny_llama

from sftjax.core import flatten
from sftjax.hub import save
from sftjax.train import (
    Saved,
    compile_step,
    join_processes,
    make_mesh,
    meet,
    on_host,
    open_checkpoints,
    patience,
    place_state,
    share_of,
    spread,
)


def main(case, described, port, size, index, folder, trouble=""):
    """Do this process's part; the first one writes what came of it."""
    os.environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_PROCESS_ID"] = size, index
    # Soon met where one is to die; else a busy machine may keep a heartbeat waiting for long.
    me = join_processes(start_seconds=240, heartbeat_seconds=10 if trouble == "die" else 200)
    made, mesh = CASES[case](), make_mesh(described)
    state, fixed = place_state(made.state, made.fixed, mesh, rules(mesh))
    step, read, losses = compile_step(made.step, mesh, rules(mesh)), [], []

    def rows_of(number, share):
        batch = made.batches.at(number, share)
        read.append(len(next(iter(batch.values()))))
        return batch

    at, home = spread(rows_of, mesh), pathlib.Path(folder)
    if trouble == "on":
        with open_checkpoints(home / "checkpoints", read_only=True) as checkpoints:
            state = checkpoints.latest(state).state
    with patience(20 if trouble in ("die", "hang") else 300) as beat:
        for number in range(int(state.step), STEPS):
            if trouble in ("die", "hang") and number == 1 and me.number == me.size - 1:
                if trouble == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)
            state, metrics = step(state, fixed, at(number))
            losses.append(float(metrics["loss"]))
            beat()
    weights = flatten(on_host((state.trainable, state.model_state)))
    if trouble == "on":
        with open_checkpoints(home / "after") as checkpoints:
            checkpoints.save(Saved(state, None, {}))
        model, params = tiny_llama(rules(mesh))
        save(home / "model", model, params, max_shard_size=20_000)
    if me.first:
        np.savez(home / "weights.npz", **weights)
        facts = {"losses": losses, "read": read, "share": share_of(mesh)}
        (home / "facts.json").write_text(json.dumps(facts | {"devices": jax.device_count()}))
    meet("the end")


if __name__ == "__main__":
    main(*sys.argv[1:])
