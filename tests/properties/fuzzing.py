"""Mutations of files, and a watch on what a reader does with them."""

import contextlib
import pathlib
import sys
import sysconfig
import tracemalloc

from hypothesis import strategies as st

_RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class",
              "socket.connect", "exec", "os.remove", "os.rename", "shutil.rmtree")  # fmt: skip
_INSTALLED = tuple({sysconfig.get_path(where) for where in ("stdlib", "purelib", "platlib")})
_seen: list[str] = []
_watching = False

NUMBERS = (0, 1, 2, 7, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1,
           2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip


def _hook(event, arguments):
    if _watching and event in _RUNS_CODE and not (event == "exec" and _of_a_module(arguments[0])):
        _seen.append(event)


def _of_a_module(code):
    """Whether an installed module is imported, as readers do the first time that they need one."""
    name = getattr(code, "co_filename", "<string>")
    return name.endswith(".py") and name.startswith(_INSTALLED) and pathlib.Path(name).exists()


sys.addaudithook(_hook)


@st.composite
def mutated(draw, whole):
    """Bytes that were once a sound file: flipped, overwritten, cut, repeated, moved."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        # Headers are where trouble is: every second mutation is near the start.
        at = at % 96 if draw(st.booleans()) else at
        how = draw(st.sampled_from(("flip", "number", "cut", "drop", "repeat", "random", "text")))
        if how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            size = draw(st.sampled_from((1, 2, 4, 8)))
            order = draw(st.sampled_from(("little", "big")))
            value = draw(st.sampled_from(NUMBERS)) % 256**size
            data[at : at + size] = value.to_bytes(size, order)
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "repeat":
            piece = bytes(data[at : at + draw(st.integers(1, 64))])
            data[at:at] = piece * draw(st.integers(1, 3))
        elif how == "random":
            data[at : at + 4] = draw(st.binary(min_size=0, max_size=8))
        else:
            word = draw(st.sampled_from((b"-1", b"1e9", b"[", b"{", b'"', b"null", b"99999999999",
                                         b"\x00", b"NaN", b"[[[[", b"..", b"/")))  # fmt: skip
            data[at : at + len(word)] = word
    return bytes(data)


@contextlib.contextmanager
def harmless(most):
    """Nothing is run meanwhile, and no more than `most` bytes are held."""
    global _watching
    _seen.clear()
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start(1)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    _watching = True
    try:
        yield
    finally:
        _watching = False
        peak = tracemalloc.get_traced_memory()[1] - before
        if started:
            tracemalloc.stop()
    assert not _seen, _seen
    assert peak <= most, f"{peak:,} bytes for a file of {most:,}"
