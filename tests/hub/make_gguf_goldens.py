"""Dequantize random blocks with ggml's own Python package, and write `gguf_goldens.npz`.

python tests/hub/make_gguf_goldens.py          # 1 second; needs the package gguf
"""

import pathlib

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16")


def main() -> None:
    """Compute and write."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        entries, width = gguf.GGML_QUANT_SIZES[kind]
        blocks = max(3, 96 // entries)
        raw = rng.integers(0, 256, (blocks, width), dtype=np.uint8)
        halves = {"Q6_K": [208], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(name, [0, 2])
        if entries > 1:  # scales of a sensible size: random bits may be infinite
            for at in halves[: 1 if name in ("Q4_0", "Q5_0", "Q8_0") else 2]:
                scale = rng.uniform(-0.1, 0.1, (blocks, 1)).astype("<f2")
                raw[:, at : at + 2] = scale.view(np.uint8)
        else:
            dtype = "<f2" if name == "F16" else "<u2"
            values = rng.standard_normal((blocks, 1)).astype(np.float32)
            half = (
                values.astype(dtype) if name == "F16" else (values.view("<u4") >> 16).astype("<u2")
            )
            raw = half.view(np.uint8)
        arrays[f"{name}/raw"] = raw
        arrays[f"{name}/values"] = gguf.dequantize(raw, kind).astype(np.float32)
    np.savez_compressed(HERE / "gguf_goldens.npz", **arrays)
    print(f"{(HERE / 'gguf_goldens.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
