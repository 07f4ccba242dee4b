"""What a run on pictures is to do, in words that users know."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from sftjax.recipes.training import Training

Statistics = Literal["frozen", "adapt", "recalibrate"]
Imbalance = Literal["none", "logit-adjusted", "focal", "class-balanced"]


@dataclasses.dataclass(frozen=True)
class PictureColumns:
    """Which columns of a source of pictures hold what."""

    image: str | None = None
    """Column of a manifest that holds paths; else the first of image, path, file, filename."""
    label: str = "label"
    """Column of labels; a folder of classes has it."""
    task: Literal["single-label", "multi-label"] = "single-label"
    """One class a picture; or any number of labels, in lists or as text such as a|b (empty is
    none)."""
    group: str | None = None
    """Column of what must not cross splits (a patient, a photograph); else `group` if there is one;
    `none` says that each picture stands alone."""
    split: str = "split"
    """Column of a manifest that holds the split."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their numbers; found in the data when left out."""


@dataclasses.dataclass(frozen=True)
class TuneImages:
    """Fine-tune a CNN or vision transformer (ResNet, ViT, ...) to tell classes of pictures."""

    command: ClassVar[str] = "images"

    model: str
    """A folder or file of weights (layouts of the Hub, torchvision, timm, augreg), a name on the
    Hub (owner/model), or asset:NAME (asset:efficientnet-lite0)."""
    data: str
    """A folder of classes, a manifest (.csv, .tsv, .jsonl, .parquet), a MedMNIST .npz, a folder of
    IDX files or of VOC boxes, tfds:NAME, or asset:NAME (asset:chest-xrays-16,
    asset:brain-mris-17)."""
    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    pictures: PictureColumns = dataclasses.field(default_factory=PictureColumns)
    training: Training = dataclasses.field(default_factory=Training)
    image_size: int = 0
    """Height and width in pixels; 0 is what the checkpoint was trained on."""
    augment: tuple[str, ...] = ()
    """Changes at random in the training step: crop, flip, flip-vertical, rotate, colour,
    randaugment, erase, mixup, cutmix; numbers after colons, crop:0.5."""
    statistics: Statistics | None = None
    """What batch norms do where their scale and bias move: keep the pretrained statistics
    (frozen), follow the batches (adapt), or be measured anew when training is over (recalibrate).
    If nothing is said: frozen, and adapt with --scratch. Those of frozen modules stand still."""
    scratch: bool = False
    """Start from random weights of the same architecture: the baseline."""
    rows_per_class: int = 0
    """Learn from so many pictures of each class, drawn by the seed; 0 is all of them."""
    imbalance: Imbalance = "none"
    """Loss against rare classes being overlooked: none, logit-adjusted, focal, class-balanced."""
    label_smoothing_factor: float = 0.0
    """Share of the target spread evenly over all classes."""
    keep_prefix: bool = False
    """Compute the frozen lower blocks once, keep what they give (in a file in the cache folder) and
    train on that. Faster from the second epoch on; not with --augment."""
    eval_data: str | None = None
    """Rows to evaluate on, a source as for --data; else the source's own validation or test split,
    else a held-out share."""
    eval_rows: int = 0
    """Evaluate on at most so many pictures, the first of a shuffle; 0 is all of them."""
    validation_fraction: float = 0.2
    """Share of the pictures held out when there is nothing else to evaluate on."""
    per_device_eval_batch_size: int = 64
    """Pictures per device in evaluation."""
    leaks: Literal["refuse", "tell"] = "refuse"
    """Where splits share a group, a file or nearly the same picture: refuse, or tell and go on."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be read, and list them; else they are refused."""
    dataloader_num_workers: int = 0
    """Processes that decode pictures; 0 decodes on the threads of this one."""
    sweep: str = ""
    """Many runs in one compiled step: `seeds=8,dose=0:4:5`; see `sftjax classify`. No model is
    saved."""

    @property
    def policy(self) -> Statistics:
        """What batch norms do, with the default filled in."""
        return self.statistics or ("adapt" if self.scratch else "frozen")
