"""Compute what torch transformers 5 gives for every image model, and write `image_goldens.npz`.

    python tests/parity/make_image_goldens.py      # 20 seconds; needs torch and transformers 5

Only outputs and tensor shapes are stored: weights and images come from their seeds.
"""

import json
import pathlib
import runpy
import tempfile
from types import SimpleNamespace

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
reference = SimpleNamespace(**runpy.run_path(str(HERE / "image_reference.py")))


def torch_output(case) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Return the shapes of a saved checkpoint, and torch's output with the weights of the seed."""
    import transformers
    from safetensors.numpy import load_file

    cls = getattr(transformers, case.torch_class)
    config = {k: v for k, v in case.config.items() if k != "model_type"}
    extra = {"num_labels": case.labels} if case.labels else {}
    if case.config["model_type"] == "dinov2":
        config.pop("intermediate_size")
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class(**config, **extra)).save_pretrained(folder)
        file = pathlib.Path(folder) / "model.safetensors"
        shapes = {k: v.shape for k, v in load_file(file).items()}
        save_file(reference.weights(shapes), file, metadata={"format": "pt"})
        model = cls.from_pretrained(folder).eval()
    return shapes, run(model, case)


def run(model, case) -> np.ndarray:
    """Run torch's model on a case's images; a CNN's map comes back channels last."""
    import torch

    pixels = torch.from_numpy(reference.images(case)).permute(0, 3, 1, 2)
    with torch.no_grad():
        result = model(pixel_values=pixels, **case.call)
    if case.kind == "features":
        return result.pooler_output.numpy()
    output = result.logits if case.labels else result.last_hidden_state
    return (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()


def main() -> None:
    """Compute and write."""
    arrays, shapes = {}, {}
    for name, case in reference.CASES.items():
        shapes[name], arrays[name] = torch_output(case)
    arrays["shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(HERE / "image_goldens.npz", **arrays)
    print(f"{len(shapes)} cases, {(HERE / 'image_goldens.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
