"""Memory as people write and read it, and the table of a planned run."""

import os
import re

import jax

from sftjax.core import platform, target_devices
from sftjax.train import StepMemory, memory_of

_LESS = (
    "Fewer rows at a time (--batch) and more of them to an update (--gradient-accumulation-steps), "
    "--bf16, --remat full, --quantize nf4 beside an adapter, or a shorter --length take less"
)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """Read a size: `16GiB` is 16 * 2^30 bytes, `16GB` or `16G` is 16 * 10^9.

    Raises:
      ValueError: if it is none.

    >>> parse_bytes("16GiB"), parse_bytes("80 GB"), parse_bytes("1e9")
    (17179869184, 80000000000, 1000000000)
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise ValueError(f"--memory {text!r}: write a size such as 16GiB or 80GB")
    return int(number * (1024 if found[3] else 1000) ** _UNITS[found[2]])


def told_bytes(size: float) -> str:
    """Write a size the way a person reads it.

    >>> told_bytes(0), told_bytes(1_234), told_bytes(17_179_869_184)
    ('0 B', '1.2 kB', '17.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def device_memory() -> tuple[int, str] | None:
    """Return the memory of a device and whose it is; None if nothing says how much there is."""
    device = target_devices()[0]
    if device not in jax.devices():  # of a topology: it is not here to be asked
        size = memory_of(device.device_kind)
        return None if size is None else (size, f"a {device.device_kind}")
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit), f"this {device.device_kind}"
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size // jax.device_count(), "this machine"
    return None


def no_room(error: str) -> str:
    """Return what to say where the compiler itself found that a program does not fit.

    >>> no_room("RESOURCE_EXHAUSTED: ... Used 22.0G of 15.7G hbm. Exceeded by 6.3G.")[:49]
    'does not fit: it takes 22.0G of 15.7G, by the com'
    """
    said = re.search(r"Used (\S+) of (\S+) hbm|\((\S+)\) exceeds available HBM \((\S+)\)", error)
    takes, has = [part for part in said.groups() if part] if said else ("", "")
    how = f"it takes {takes} of {has}" if said else error.splitlines()[0]
    return f"does not fit: {how}, by the compiler of {target_devices()[0].device_kind}. {_LESS}"


def plan_table(
    memory: StepMemory, notes: dict[str, str], logits: int, room: tuple[int, str] | None
) -> str:
    """Return bytes by kind, the compiler's own figures beside them, and whether they fit.

    Args:
      memory: of the step.
      notes: field of `memory`, or "logits" -> what to say beside it.
      logits: bytes of the logits that are held at once.
      room: the memory of a device and whose it is.
    """
    names = {
        "frozen": "weights, frozen", "trained": "weights, trained", "gradients": "gradients",
        "moments": "moments", "anchor": "anchor", "batch": "batch", "activations": "activations",
        "logits": "logits",
    }  # fmt: skip
    sizes = {**memory._asdict(), "logits": logits}
    lines = []
    for field, name in names.items():
        note = notes.get(field, "")
        lines.append(f"{name:<17} {told_bytes(sizes[field]):>10}  {note}".rstrip())
    lines += [
        "",
        f"compiled for {platform()}: arguments {told_bytes(memory.arguments)}, "
        f"temporary {told_bytes(memory.temporary)}, outputs {told_bytes(memory.outputs)} of which "
        f"{told_bytes(memory.in_place)} in place",
        f"at once {told_bytes(memory.total)}; counted from shapes {told_bytes(memory.planned)}, "
        f"{memory.planned / memory.total - 1:+.1%}",
    ]
    if room is None:
        lines.append("how much memory the device has is not known; say it with --memory 16GiB")
    elif memory.total <= room[0]:
        free = 1 - memory.total / room[0]
        lines.append(f"fits {told_bytes(room[0])} ({room[1]}); {free:.0%} stay free")
    else:
        lines.append(
            f"does not fit {told_bytes(room[0])} ({room[1]}): {told_bytes(memory.total - room[0])} "
            f"too many. {_LESS}"
        )
    return "\n".join(lines)
