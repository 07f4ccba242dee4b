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
    """A local folder in the Hub's layout, a repository on the Hub, or an asset of sftjax.data."""
    data: str = "construction-faq"
    """Conversations, in a .jsonl, .parquet or .csv file, a folder of train/validation/test files,
    or tfds:NAME: messages, ShareGPT, prompt/completion, Alpaca, or text."""
    rows: ChatRows = dataclasses.field(default_factory=ChatRows)
    training: Training = dataclasses.field(
        default_factory=lambda: Training(per_device_train_batch_size=4)
    )
    eval_data: str | None = None
    """Where to evaluate; else the source's own validation or test split, else a held-out share."""
    validation_fraction: float = 0.1
    """Share of the conversations held out when there is nothing else to evaluate on."""
    per_device_eval_batch_size: int = 4
    """Rows per device in evaluation."""
    reference_data: str | None = None
    """General text (a column `text`) to measure on what is kept; else newspaper editorials."""
    reference_rows: int = 16
    """At most so many of its rows; 0 measures nothing."""
    samples: int = 3
    """Held-out questions that are answered before and after."""
    max_new_tokens: int = 64
    """Most tokens in such an answer."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over all words."""
    z_loss: float = 0.0
    """Weight of the squared log of the logits' sum, which keeps them from drifting."""
    dft: bool = False
    """Weigh each token by its own probability, as it stands (DFT)."""
    base_kl: float = 0.0
    """Weight of the divergence from the base per token; with --dft this is ASFT. Needs an adapter:
    the base is the same weights without it."""
    neftune_noise_alpha: float = 0.0
    """Disturb the words by noise of this size (NEFTune; 5 is usual)."""
    remat: str = "none"
    """What is computed again going backward to save memory: none, dots, full."""
