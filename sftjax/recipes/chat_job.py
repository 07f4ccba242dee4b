"""What a chat run is to do, in words that users know."""

import dataclasses
import pathlib
from typing import ClassVar

from sftjax.recipes.chat_rows import ChatRows
from sftjax.recipes.training import Training


@dataclasses.dataclass(frozen=True)
class TuneChat:
    """Fine-tune a decoder (Llama, SmolLM2, Mistral, Qwen, Gemma) on conversations."""

    command: ClassVar[str] = "chat"

    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    model: str = "smollm2-135m-instruct"
    """A folder of a model, a name on the Hub (owner/model), or asset:NAME
    (asset:smollm2-135m-instruct); a GGUF file too."""
    data: str = "construction-faq"
    """Conversations, in a .jsonl, .parquet or .csv file, a folder of train/validation/test files,
    or tfds:NAME: messages, ShareGPT, prompt/completion, Alpaca, or text."""
    rows: ChatRows = dataclasses.field(default_factory=ChatRows)
    training: Training = dataclasses.field(
        default_factory=lambda: Training(per_device_train_batch_size=4)
    )
    eval_data: str | None = None
    """Rows to evaluate on, a source as for --data; else the source's own validation or test split,
    else a held-out share."""
    validation_fraction: float = 0.1
    """Share of the conversations held out when there is nothing else to evaluate on."""
    per_device_eval_batch_size: int = 4
    """Rows per device in evaluation."""
    reference_data: str | None = None
    """General text (a column `text`) to measure on what is kept; else newspaper editorials."""
    reference_rows: int = 16
    """At most so many of its rows; 0 measures nothing."""
    samples: int = 3
    """How many held-out questions are answered before and after, to be read."""
    max_new_tokens: int = 64
    """Most tokens in such an answer."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over all words."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 0
    is off, 1e-4 is usual."""
    dft: bool = False
    """Weigh each token's loss by the probability that the model gives it, not differentiated
    (DFT)."""
    base_kl: float = 0.0
    """Weight of the divergence from the base per token; with --dft this is ASFT. Needs an adapter:
    the base is the same weights without it."""
    neftune_noise_alpha: float = 0.0
    """Add noise of this size to the word vectors while training (NEFTune; 5 is usual, 0 is
    none)."""
    remat: str = "none"
    """What the backward pass computes again to save memory: none, dots (all but products of
    matrices), full (all but what enters each block)."""
