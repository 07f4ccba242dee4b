"""Models of images (CNNs and vision transformers) as pure functions of params and batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from sftjax.core import Batch, PyTree, flatten
from sftjax.models import convnext, efficientnet, resnet, vgg, vit
from sftjax.models.batch_norm import MOVING
from sftjax.models.dropout import Dropout
from sftjax.models.head import IMAGE_KINDS, Head, check_head
from sftjax.models.level import at
from sftjax.models.passage import Final, Passage
from sftjax.models.segment import Decoder
from sftjax.models.shapes import Shaped
from sftjax.models.statistics import statistics_of


class Imaging(NamedTuple):
    """What differs between the families of image models."""

    trunk: str
    """The first segment of the trunk's paths."""
    read: Callable[[Mapping[str, Any]], Any]
    blocks: Callable[[Any, Array, Passage, DTypeLike], Array]
    """`(architecture, images, passage, dtype) -> output of the last block`."""
    finish: Callable[[Any, Array, Passage, DTypeLike], Final]
    """`(architecture, output of the last block, passage, dtype) -> what heads read`."""
    classify: Callable[[Any, Final, int], Array]
    patched: bool = False
    """Whether height and width must be multiples of the patch."""


_VIT = Imaging("vit", vit.read, vit.blocks, vit.finish, vit.classify, patched=True)

IMAGE_FAMILIES: dict[str, Imaging] = {
    "resnet": Imaging("resnet", resnet.read, resnet.blocks, resnet.finish, resnet.classify),
    "efficientnet": Imaging(
        "efficientnet", efficientnet.read, efficientnet.blocks, efficientnet.finish,
        efficientnet.classify,
    ),
    "convnext": Imaging(
        "convnext", convnext.read, convnext.blocks, convnext.finish, convnext.classify
    ),
    "vgg": Imaging("vgg", vgg.read, vgg.blocks, vgg.finish, vgg.classify),
    "vit": _VIT,
    "deit": _VIT._replace(trunk="deit"),
    "dinov2": _VIT._replace(trunk="dinov2"),
}  # fmt: skip
"""`model_type` of a config -> how to build it."""


class ImageNetwork(nn.Module):
    """A trunk and one head; or the part of a trunk below a block, or from one on."""

    family: str
    architecture: Any
    head: Head
    dtype: DTypeLike
    start: int | None = None
    """The first block that is run, on the given output of those below it."""
    stop: int | None = None
    """One past the last block that is run; its output is the result."""

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        """Return the head's output from (B, H, W, C) images, or from a hidden state.

        `size` is that of the images, where `x` is a hidden state and images are known.
        """
        family, a, head = IMAGE_FAMILIES[self.family], self.architecture, self.head
        passage = Passage(self.start or 0, self.stop, given=self.start is not None)
        if size is not None and family.patched:
            passage.grid = (size[0] // a.patch, size[1] // a.patch)

        def trunk(x: Array) -> Array | Final:
            x = family.blocks(a, x.astype(self.dtype), passage, self.dtype)
            return x if self.stop is not None else family.finish(a, x, passage, self.dtype)

        final = at(family.trunk, trunk, x)
        if self.stop is not None:
            return final.astype(jnp.float32)
        if head.kind == "image":
            dropped = Dropout(getattr(a, "dropout", 0.0) if self.family == "efficientnet" else 0.0)
            return family.classify(a, final._replace(read=dropped(final.read)), len(head.labels))
        if head.kind == "hidden":
            return final.hidden
        if head.kind == "segment":
            chosen = _four(a.stages)
            maps = [passage.maps[stage] for stage in chosen]
            return Decoder(len(head.labels), self.dtype, name="decoder")(
                maps, (x.shape[1], x.shape[2])
            )
        chosen = passage.maps[head.stage].astype(jnp.float32) if head.stage else final.map
        if head.kind == "map":
            return chosen
        return chosen.mean((1, 2)) if head.stage else final.features


def _four(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return at most four stages, evenly spaced, the last one among them; the stem is left out.

    >>> _four(("stem", *(f"stage{i}" for i in range(1, 13))))
    ('stage3', 'stage6', 'stage9', 'stage12')
    """
    later = [stage for stage in stages if stage != "stem"]
    count = min(4, len(later))
    return tuple(later[(i + 1) * len(later) // count - 1] for i in range(count))


@dataclass(frozen=True)
class ImageModel(Shaped):
    """A model of images as pure functions; it holds no weights."""

    family: str
    """The config's `model_type`."""
    config: Mapping[str, Any] = field(repr=False)
    """The checkpoint's `config.json`, unknown fields and all."""
    head: Head
    module: ImageNetwork = field(repr=False)
    architecture: Any = field(repr=False)
    max_length: int | None = None
    """Images have no length."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the maps that `Head.stage` can choose, lowest first."""
        return self.architecture.stages

    @property
    def num_blocks(self) -> int:
        """How many blocks `split` can cut between: those that `select` numbers."""
        return self.architecture.num_blocks

    @property
    def statistics(self) -> tuple[str, ...]:
        """Paths of the leaves that are running statistics, which no gradient may move."""
        return statistics_of(self.shapes())

    def apply(self, params: PyTree, batch: Batch, key: Array | None = None) -> Array:
        """Run the model; every batch norm uses its running statistics.

        Args:
          params: as `init` or `hub.load` gives them.
          batch: `pixel_values` (B, H, W, C), floating and normalised as the checkpoint wants them.
          key: draws dropout and stochastic depth at the config's rates; `None` is neither.

        Returns:
          float32; what the head gives (see `Head.kind`).

        Raises:
          ValueError: if there are no `pixel_values`, they are not (B, H, W, C) floats with the
            model's channels, or their size is not a multiple of a transformer's patch.
        """
        rngs = {} if key is None else {"dropout": key}
        return self.module.apply({"params": params}, *self._inputs(batch), rngs=rngs)  # type: ignore[return-value]

    def apply_moving(
        self, params: PyTree, statistics: PyTree, batch: Batch, key: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Run the model with some batch norms in train mode.

        Args:
          params: without the leaves that are in `statistics` (`take_statistics` parts them).
          statistics: the running statistics that follow the batch, holes elsewhere.
          batch: as in `apply`; every row counts, so that none may be padding.
          key: as in `apply`.

        Returns:
          The output, and the statistics after this batch: what `Aux.model_state` takes.
        """
        variables = {"params": params, MOVING: _without_holes(statistics)}
        rngs = {} if key is None else {"dropout": key}
        output, moved = self.module.apply(
            variables, *self._inputs(batch), rngs=rngs, mutable=[MOVING]
        )
        new = flatten(moved.get(MOVING, {}))
        return output, jax.tree_util.tree_map_with_path(
            lambda keys, _: new[jax.tree_util.keystr(keys, simple=True, separator="/")], statistics
        )

    def attentions(self, params: PyTree, batch: Batch) -> Array:
        """Return attention weights, (L, B, heads, T, T) float32, the lowest layer first.

        Raises:
          ValueError: if the model has no attention.
        """
        if not IMAGE_FAMILIES[self.family].patched:
            raise ValueError(f"a {self.family} has no attention to look at")
        _, seen = self.module.apply({"params": params}, *self._inputs(batch), mutable=[vit.LOOKS])
        found = flatten(seen[vit.LOOKS])
        layer = {int(path.split("/layer/")[1].split("/")[0]): w for path, w in found.items()}
        return jnp.stack([layer[number] for number in sorted(layer)])

    def init(self, key: Array) -> PyTree:
        """Return fresh float32 params."""
        side = self.architecture.image_size if IMAGE_FAMILIES[self.family].patched else 64
        images = jnp.zeros((1, side, side, self.architecture.num_channels))
        return self.module.init(key, images)["params"]

    def _inputs(self, batch: Batch) -> tuple[Array, tuple[int, int] | None]:
        images = batch.get("pixel_values")
        size = None if images is None else (jnp.shape(images)[1], jnp.shape(images)[2])
        if self.module.start is not None:
            if "hidden" not in batch:
                raise ValueError(
                    f"this is the part of a model from block {self.module.start} on, and the batch "
                    "has no 'hidden', which the lower part gives (see models.split)"
                )
            return jnp.asarray(batch["hidden"]), size
        if images is None:
            raise ValueError(
                f"the batch has no pixel_values, only {sorted(batch)}; decode the images first"
            )
        images = jnp.asarray(images)
        channels = self.architecture.num_channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise ValueError(
                f"pixel_values have shape {images.shape}; this {self.family} reads (rows, height, "
                f"width, {channels}). Channels come last; for another number of them load with "
                'config={"num_channels": ...}'
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"pixel_values are {images.dtype}; normalise them first, as (value / 255 - mean) / "
                "std with the numbers of the checkpoint's preprocessor_config.json"
            )
        patch = getattr(self.architecture, "patch", 1)
        if IMAGE_FAMILIES[self.family].patched and any(side % patch for side in images.shape[1:3]):
            raise ValueError(
                f"the images are {images.shape[1]} x {images.shape[2]}, and this {self.family} "
                f"cuts them into patches of {patch}; resize or crop to a multiple of {patch}"
            )
        return images, size


def _without_holes(tree: PyTree) -> PyTree:
    if not isinstance(tree, Mapping):
        return tree
    kept = {name: _without_holes(child) for name, child in tree.items()}
    empty = [name for name, child in kept.items() if isinstance(child, Mapping) and not child]
    return {n: child for n, child in kept.items() if child is not None and n not in empty}


def build_image_model(config: Mapping[str, Any], head: Head, dtype: DTypeLike) -> ImageModel:
    """Make an image model of a checkpoint's config and a head; `build` says how.

    Raises:
      ValueError: if a field is missing or asks for what is not built here, or the head does not
        fit.
    """
    name = config["model_type"]
    architecture = IMAGE_FAMILIES[name].read(config)
    check_head(head, IMAGE_KINDS)
    if head.stage and head.stage not in architecture.stages:
        raise ValueError(
            f"this {name} has no stage {head.stage!r}; its stages are "
            f"{', '.join(architecture.stages)}"
        )
    module = ImageNetwork(name, architecture, head, jnp.dtype(dtype))
    return ImageModel(name, config, head, module, architecture)
