"""What a search for anomalies is to do, in words that users know."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from sftjax.recipes.images_job import PictureColumns

Detector = Literal["knn", "mahalanobis", "relative-mahalanobis", "patchcore", "energy", "msp"]


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """Learn what normal pictures look like, score others, and show where they are strange."""

    command: ClassVar[str] = "anomaly"

    model: str
    """A model of pictures, as for `sftjax images`: pretrained, or one of your own runs."""
    data: str
    """Pictures, as for `sftjax images`; those that are not normal are tested on, never fitted."""
    output_dir: pathlib.Path
    """The run's folder: detectors, scores, report, plots."""
    normal: tuple[str, ...] = ()
    """Classes that are normal; without any, all pictures of --data are."""
    leave_out: tuple[str, ...] = ()
    """Instead of --normal: classes that are not normal; all others are."""
    test_data: str | None = None
    """Pictures to score; else the source's test split, else what was held out, and all others."""
    pictures: PictureColumns = dataclasses.field(default_factory=PictureColumns)
    methods: tuple[Detector, ...] = ("knn", "mahalanobis", "patchcore")
    """How strangeness is measured: of features by knn, mahalanobis or relative-mahalanobis; of
    places by patchcore, with heat maps; of a tuned model's own classes by energy or msp."""
    stages: tuple[str, ...] = ()
    """The model's stages that patchcore reads; else two in the middle."""
    neighbours: int = 5
    """knn: to the how manieth nearest normal picture the distance is taken."""
    coreset: float = 0.02
    """patchcore: the share of normal patches that is kept."""
    image_size: int = 0
    """Height and width in pixels; 0 is what the checkpoint was trained on."""
    fit_rows: int = 400
    """Learn from at most so many normal pictures, and set thresholds on at most so many others; 0
    is all of them."""
    test_rows: int = 0
    """Score at most so many pictures, kinds in proportion; 0 is all of them."""
    false_alarms: float = 0.05
    """The share of normal pictures that may be called strange: sets the threshold, on normal
    pictures that nothing was fitted on."""
    heat_maps: int = 9
    """How many pictures get a heat map (patchcore)."""
    per_device_eval_batch_size: int = 32
    """Pictures per device at a time."""
    leaks: Literal["refuse", "tell"] = "refuse"
    """Where the parts share a group, a file or nearly the same picture: refuse, or tell and go
    on."""
    skip_corrupt: bool = False
    """Leave out pictures that cannot be read, and list them; else they are refused."""
    dataloader_num_workers: int = 0
    """Processes that decode pictures; 0 decodes on the threads of this one."""
    seed: int = 0
    """Seed of what is held out and of the coreset."""
