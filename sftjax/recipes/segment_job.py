"""What a segmentation is to do, in words that users know."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from sftjax.recipes.images_job import Statistics
from sftjax.recipes.training import Training


@dataclasses.dataclass(frozen=True)
class MaskColumns:
    """Which columns of a manifest hold what, and what the masks' numbers mean."""

    image: str | None = None
    """Column of paths of pictures; else the first of image, path, file, filename."""
    mask: str = "mask"
    """Column of paths of masks."""
    group: str | None = None
    """Column of what must not cross splits (a patient, a volume); else `group` if there is one;
    `none` says that each picture stands alone."""
    split: str = "split"
    """Column that holds the split."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the masks' numbers, the background first; else the lines of
    classes.txt beside the data, else named by their values."""
    ignore: int | None = None
    """The value of pixels that do not count."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Fine-tune a CNN or vision transformer to find a class for every pixel."""

    command: ClassVar[str] = "segment"
    keep_prefix: ClassVar[bool] = False
    """A decoder reads maps of every height, so that there is no prefix to keep."""

    model: str
    """A folder or file of weights (layouts of the Hub, torchvision, timm, augreg), a name on the
    Hub (owner/model), or asset:NAME (asset:efficientnet-lite0)."""
    data: str
    """A folder with images/ and masks/, a manifest with a column of masks (PNG of class numbers, or
    volumes of NIfTI), or asset:mni152-slices."""
    output_dir: pathlib.Path
    """The run's folder: model, metrics, report, plots, checkpoints. The same command resumes it."""
    masks: MaskColumns = dataclasses.field(default_factory=MaskColumns)
    training: Training = dataclasses.field(default_factory=Training)
    image_size: int = 0
    """Height and width in pixels, to which pictures are resized whole; 0 is the checkpoint's."""
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    """Planes into which volumes (NIfTI) are cut."""
    every: int = 1
    """Of a volume's planes, take one of so many; 1 is all of them."""
    augment: tuple[str, ...] = ()
    """Changes at random in the training step: flip, flip-vertical, colour."""
    dice_weight: float = 1.0
    """Weight of the Dice loss beside the cross-entropy's, which is 1; 0 leaves it out."""
    statistics: Statistics | None = None
    """What batch norms do where their scale and bias move; as in `sftjax images`."""
    scratch: bool = False
    """Start from random weights of the same architecture: the baseline."""
    eval_data: str | None = None
    """Rows to evaluate on, a source as for --data; else the source's own validation or test split,
    else a held-out share."""
    validation_fraction: float = 0.2
    """Share of the pictures (of whole groups) held out when there is nothing else."""
    per_device_eval_batch_size: int = 16
    """Pictures per device in evaluation."""
    leaks: Literal["refuse", "tell"] = "refuse"
    """Where splits share a group, a file or nearly the same picture: refuse, or tell and go on."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be read, and list them; else they are refused. A mask that
    cannot be read is always refused."""
    dataloader_num_workers: int = 0
    """Processes that decode pictures; 0 decodes on the threads of this one."""
    overlays: int = 9
    """How many evaluation pictures are drawn with their masks."""

    @property
    def policy(self) -> Statistics:
        """What batch norms do, with the default filled in."""
        return self.statistics or ("adapt" if self.scratch else "frozen")
