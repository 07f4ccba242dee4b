"""The peer of the picture benchmarks: transformers' modules on torch, in a process of its own.

Both sides start from the same files and see the same pictures in the same order.
"""

import time
from typing import Any

import numpy as np

LEARNING_RATE = 1e-3
BEGUN = 3
"""First updates whose losses are compared."""


def pictures_of(rows: int, side: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch of noise, normalized, and its labels."""
    rng = np.random.default_rng(seed)
    return {
        "pixel_values": rng.standard_normal((rows, side, side, 3), dtype=np.float32),
        "labels": rng.integers(0, 10, rows).astype(np.int32),
    }


class TorchStep:
    """One network and one way of training it, ready to be timed."""

    def __init__(self, folder: str, mode: str, batch: dict[str, np.ndarray]):
        """Load the folder; `mode` is full, adapt (full, in train mode), last (stage) or head."""
        import torch
        from transformers import AutoModelForImageClassification

        self.torch = torch
        torch.manual_seed(0)
        # Channels last is torch's own faster layout for convolutions.
        model = AutoModelForImageClassification.from_pretrained(folder).to(
            memory_format=torch.channels_last  # type: ignore[arg-type]
        )
        # In evaluation mode batch norms use their running statistics, and dropout is off.
        self.model = model.train() if mode == "adapt" else model.eval()
        last = {"full": "", "adapt": "", "head": "classifier", "last": "encoder.stages.3"}[mode]
        for name, weight in model.named_parameters():
            weight.requires_grad_(last in name or name.startswith("classifier"))
        moving = [weight for weight in model.parameters() if weight.requires_grad]
        self.trainable = sum(weight.numel() for weight in moving)
        self.optimizer = torch.optim.AdamW(moving, lr=LEARNING_RATE, weight_decay=0.0)
        self.pixels, self.labels = self.tensors(batch)

    def tensors(self, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
        """Return pictures (B, 3, H, W), channels last in memory, and labels."""
        pixels = self.torch.from_numpy(np.ascontiguousarray(batch["pixel_values"]))
        return pixels.permute(0, 3, 1, 2), self.torch.from_numpy(batch["labels"]).long()

    def update(self, pixels: Any, labels: Any) -> float:
        """Make one update and return its loss."""
        logits = self.model(pixel_values=pixels).logits
        loss = self.torch.nn.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def round(self, steps: int) -> tuple[float, float, list[float]]:
        """Return seconds a step by the wall and of the processors, and the losses."""
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [self.update(self.pixels, self.labels) for _ in range(steps)]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall / steps, cpu / steps, losses

    def transfer(self, files: list[str], labels: list[int], side: int, rows: int, epochs: int):
        """Decode once, then train for some epochs through the whole network, in a fixed order.

        Returns:
          Seconds of decoding and of training, and the losses of the first updates and of each
          epoch's last batch.
        """
        from sftjax.data import Processor, Table, load_images

        begin = time.perf_counter()
        images = load_images(Table({"image": files}, "files"), Processor(resize=(side, side)))
        pixels = images.processor.normalize(images.pixels)
        decoded = time.perf_counter()
        every = [
            self.tensors(
                {
                    "pixel_values": pixels[start : start + rows],
                    "labels": np.asarray(labels[start : start + rows], np.int32),
                }
            )
            for start in range(0, len(files), rows)
        ]
        losses = []
        for _ in range(epochs):
            for place, batch in enumerate(every):
                loss = self.update(*batch)
                if len(losses) < BEGUN or place == len(every) - 1:
                    losses.append(loss)
        return decoded - begin, time.perf_counter() - decoded, losses


def torch_side() -> tuple[dict[str, Any], Any]:
    """Prepare the peer's process: requests are `("load" | "round" | "transfer", {...})`."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    held: dict[str, TorchStep] = {}

    def answer(request: tuple[str, dict[str, Any]]) -> Any:
        word, words = request
        if word == "load":
            batch = pictures_of(words["rows"], words["side"])
            held["step"] = TorchStep(words["folder"], words["mode"], batch)
            return held["step"].trainable
        if word == "round":
            return held["step"].round(words["steps"])
        step = TorchStep(words.pop("folder"), words.pop("mode"), pictures_of(1, words["side"]))
        return step.transfer(**words)

    return {"threads": torch.get_num_threads()}, answer
