"""Compute what torch transformers 5 gives for every decoder, and write `causal_goldens.npz`.

python tests/parity/make_causal_goldens.py     # 30 seconds; needs torch and transformers 5
"""

import json
import pathlib
import runpy
from types import SimpleNamespace

import numpy as np

HERE = pathlib.Path(__file__).parent
causal = SimpleNamespace(**runpy.run_path(str(HERE / "causal_reference.py")))
reference = causal.reference


def torch_model(case):
    """Return torch's model with the weights of the seed, and the shapes of its state dict."""
    import torch
    import transformers

    fields = dict(reference.config_of(case))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    config._attn_implementation = "eager"  # the only one that caps scores
    model = getattr(transformers, case.torch_class)(config).eval()
    tied = dict(model.all_tied_weights_keys)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}
    drawn = {k: torch.from_numpy(v) for k, v in reference.weights(shapes).items()}
    whole = drawn | {name: drawn[source] for name, source in tied.items()}
    model.load_state_dict(whole, strict=True)
    model.tie_weights()
    return model, shapes


def torch_output(case) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Return the shapes of torch's state dict, and its output with the weights of the seed."""
    import torch

    model, shapes = torch_model(case)
    tensors = {k: torch.from_numpy(v).long() for k, v in causal.inputs(case).items()}
    with torch.no_grad():
        return shapes, model(**tensors)[0].numpy()


def main() -> None:
    """Compute and write."""
    arrays, shapes = {}, {}
    for name, case in causal.CASES.items():
        shapes[name], arrays[name] = torch_output(case)
    arrays["shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(HERE / "causal_goldens.npz", **arrays)
    size = (HERE / "causal_goldens.npz").stat().st_size
    print(f"{len(shapes)} cases, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
