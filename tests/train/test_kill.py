"""kill -9 at random instants, inside saves too: every resume ends in the same bytes.

Of one process and of two, which share the weights; and what a SIGTERM to one of them does.
By hand: SFTJAX_KILLS=30 pytest tests/train/test_kill.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

KILLS = os.environ.get("SFTJAX_KILLS")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
@pytest.mark.parametrize(("size", "few"), [(1, 6), (2, 1)])
def test_killed_at_random_instants_every_resume_ends_in_the_same_bytes(size, few, tmp_path):
    kills = int(KILLS or few)
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for name in (
        "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ):  # fmt: skip
        one_device.setdefault(name.upper(), str(getattr(jax.config, name)))
    job = pathlib.Path(__file__).with_name("kill_job.py")
    done = subprocess.run(
        [sys.executable, str(job), str(tmp_path), str(kills), str(size)],
        capture_output=True, text=True, timeout=7200 if KILLS else 600, env=one_device, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.strip().split("\n")[-1])
    print(seen)
    assert seen["same"], seen
    assert seen["kills"] >= kills
    assert seen["asked"] > 0
    assert seen["resumed"] > 0  # after the signal, if not after a kill
    # A save is begun every 2 updates; the one in flight is all that a kill can take.
    assert seen["lost"] <= 2, seen
