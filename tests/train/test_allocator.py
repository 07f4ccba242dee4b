"""Freed memory is kept for the next step, but not without a limit."""

import subprocess
import sys

import pytest

from sftjax.train import keep_freed_memory

HELD = """
import sys, time
from sftjax.train.allocator import _held, _glibc, keep_freed_memory
if _glibc() is None:
    print("elsewhere")
    sys.exit()
share = float(sys.argv[1])
keep_freed_memory(share)
block = bytearray(400_000_000)
small = bytes(100_000)  # above it: the block is not at the top of the heap
time.sleep(1.0)
del block
time.sleep(4.0)
print(_held())
"""


@pytest.mark.parametrize(("share", "kept"), [("1.0", True), ("0.0001", False)])
def test_a_freed_block_is_held_below_the_limit_and_given_back_beyond_it(share, kept):
    run = subprocess.run(
        [sys.executable, "-c", HELD, share], capture_output=True, text=True, check=True, timeout=120
    )
    if run.stdout.strip() == "elsewhere":
        pytest.skip("no glibc here")
    assert (int(run.stdout) > 400_000_000) is kept


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share of the machine's memory"):
        keep_freed_memory(share)
