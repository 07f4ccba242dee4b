"""Compute what torch transformers 5 gives for every case, and write `goldens.npz`.

    python tests/parity/make_goldens.py            # 20 seconds; needs torch and transformers 5

Only outputs and tensor shapes are stored: weights and inputs come from their seeds (`reference`).
"""

import json
import pathlib
import runpy
from types import SimpleNamespace

import numpy as np

HERE = pathlib.Path(__file__).parent
reference = SimpleNamespace(**runpy.run_path(str(HERE / "reference.py")))


def torch_output(case) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Return the shapes of torch's state dict, and its output with the weights of the seed."""
    import torch
    import transformers

    family = case.torch_class
    for suffix in ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "Model"):
        family = family.removesuffix(suffix)
    config = getattr(transformers, f"{family}Config")(
        **{k: v for k, v in reference.config_of(case).items() if k != "model_type"}
    )
    model = getattr(transformers, case.torch_class)(config).eval()
    tied = dict(model.all_tied_weights_keys)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}
    drawn = {k: torch.from_numpy(v) for k, v in reference.weights(shapes).items()}
    whole = drawn | {name: drawn[source] for name, source in tied.items()}
    model.load_state_dict(whole, strict=True)
    model.tie_weights()
    tensors = {k: torch.from_numpy(v).long() for k, v in reference.inputs(case).items()}
    with torch.no_grad():
        result = model(**tensors)
    output = result.pooler_output if case.kind == "pooled" else result[0]
    return shapes, output.numpy()


def main() -> None:
    """Compute and write."""
    arrays, shapes = {}, {}
    for name, case in reference.CASES.items():
        shapes[name], arrays[name] = torch_output(case)
    arrays["shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(HERE / "goldens.npz", **arrays)
    print(f"{len(shapes)} cases, {(HERE / 'goldens.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
