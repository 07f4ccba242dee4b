"""How to train, in words that users know, and what it gives."""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from sftjax.core import PyTree, target_devices
from sftjax.select import Description, Selection
from sftjax.train import Fit, OnNan, parse_mesh

_BESIDE = ("mesh", "distributed", "on_change", "report_to", "profile", "replay")
"""Settings that change nothing in the weights."""
LESS_IS_BETTER = ("loss", "mse", "rmse", "mae", "nll", "brier", "ece")
"""Endings of metrics of which the smallest value is the best."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train. Names are those that users of transformers and TRL know."""

    train: tuple[str, ...] = ()
    """What moves: `all`, `last:K` blocks, `head`, `new`, or path patterns; `PATTERN=RATE`
    multiplies the learning rate. The first match decides. If nothing is said: `last:2`, and with an
    adapter `new`, which is the adapter and what has no pretrained value; `bias new` or `norm new`
    train these beside it, `adapter=RATE` is a rate of its own."""
    adapter: tuple[str, ...] = ()
    """Adapters beside the weights, which then stay what they were: `lora:r=8,alpha=16`, also
    rslora, dora, pissa, olora, ia3, houlsby, pfeiffer, prompt, prefix; settings in PEFT's words,
    `targets=query|value`, `layers=4|5`."""
    lora_plus: float = 1.0
    """LoRA+: the learning rate of a LoRA's second matrix (B), as a multiple of the first's; 1 is
    plain LoRA, 16 is usual."""
    quantize: str = ""
    """Keep the frozen weights beside an adapter in few bits: nf4, nf4-double, int8, int8-double
    (double quantizes the scales too). If nothing is said, nothing is quantized."""
    anchor: str = ""
    """How what moves is held to what pretraining taught: l2-sp, ewc, recadam, difference, mixout,
    features, logits, ema, wise-ft take the dose (also as NAME:DOSE); none, spd, r3f, smart, sam,
    child-f, child-d, lisa have none, nor has tpgm, which learns its radii from training rows that
    it holds out. If nothing is said: l2-sp, and none where nothing can be held (a prompt, a
    prefix)."""
    dose: float = 1.0
    """How strongly the anchor holds: 0 not at all, 1 leaves about 0.63 of the distance that would
    be travelled without it, 4 a quarter. A new head is never held."""
    layer_decay: float = 1.0
    """Multiply the learning rate by this for each block further from the top; 1 is the same rate
    everywhere, 0.75 is usual."""
    phases: tuple[str, ...] = ()
    """Train in phases: `lp` (what is new), `ft` (what --train names), `gradual:K` (last:1, ...,
    last:K), or any rule; `NAME@SHARE` gives it a share of the updates."""
    probe_learning_rate: float = 1e-3
    """Peak learning rate of phases that move nothing pretrained (such as `lp`)."""
    strength: float | None = None
    """Strength of l2-sp or ewc as a number (lambda), instead of a dose."""
    coupled: bool = False
    """Let that pull pass through Adam as part of the gradient, instead of beside it. It has no dose
    then: give --strength (0.1 is a usual one)."""
    importance_weight: float = 1.0
    """How far ewc weighs by the Fisher information, from 0 (as l2-sp) to 1."""
    average: str = ""
    """Evaluate and keep a mean of the weights: `ema:DECAY` (as in ema:0.999), or `swa` from the
    middle of the run on, `swa:SHARE` from that share of the updates on."""
    optim: str = "adamw"
    """The optimizer: adamw, adamw-bf16 (its first moment in bfloat16), lion, lion-bf16, adafactor,
    sgd (with momentum 0.9). Clipping, decay, anchor and schedule are the same with all; lion and
    sgd need another learning rate."""
    learning_rate: float = 1e-4
    """Peak learning rate: a linear warmup up to it, a linear decay to zero from it."""
    warmup_ratio: float = 0.1
    """Share of the updates spent warming up."""
    num_train_epochs: float = 3.0
    """Passes over the training rows."""
    max_steps: int = 0
    """Number of updates; 0 is as many as --num-train-epochs come to."""
    per_device_train_batch_size: Annotated[int, tyro.conf.arg(aliases=["--batch"])] = 32
    """Rows per device in one micro-batch; with --mesh the devices along data and fsdp count."""
    gradient_accumulation_steps: int = 1
    """Micro-batches whose gradients are added up for one update."""
    weight_decay: float = 0.01
    """Weight decay (toward zero) of matrices that no anchor holds, such as a new head."""
    max_grad_norm: float = 1.0
    """Clip the norm of the gradient of all that moves to this; 0 never clips."""
    dropout: bool = False
    """Use the dropout rates of the model's config while training."""
    bf16: bool = False
    """Compute in bfloat16 and keep frozen weights in it; trainable weights stay float32."""
    seed: int = 0
    """Seed of the new head, the order of rows and dropout."""
    eval_steps: int = 0
    """Updates between evaluations; 0 is once an epoch."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a new best; 0 never."""
    metric_for_best_model: str = "eval_loss"
    """Which evaluation number picks the weights that are kept, as metrics.json names it: eval_loss,
    eval_accuracy, eval_macro_f1, ...; a wrong name is refused with the list."""
    save_steps: int = 0
    """Updates between checkpoints; 0 is at every evaluation."""
    logging_steps: int = 10
    """Updates between lines of the log (log.jsonl)."""
    mesh: str = ""
    """How several devices share the work, as in data=2,fsdp=4: data and fsdp deal out rows, fsdp
    cuts weights and all that belongs to them, tensor cuts layers, sequence the tokens of a row; -1
    is what is left. If nothing is said, every device has all weights and its rows. The run is the
    same on any mesh with as many data times fsdp, and can go on there."""
    distributed: bool = False
    """This is one of several processes of one run (TPU pod, Slurm, GKE, Open MPI, or as told by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID): give all of them the same
    command, and a folder that all see. The first one writes and prints."""
    on_nan: OnNan = "stop"
    """When a loss or a gradient is not finite: `stop` says where it came from; `skip` leaves the
    update out and counts it; `rollback` goes back to the last checkpoint and past the batches up to
    the bad one."""
    on_change: Literal["refuse", "accept"] = "refuse"
    """What to do in a folder whose run was made with other data, weights or settings: refuse, or go
    on from its checkpoint with what there is now, and note what changed."""
    report_to: tuple[str, ...] = ()
    """Besides `log.jsonl`: tensorboard, wandb (extras of the same names)."""
    profile: int = 0
    """Take a profile (jax.profiler; open it with tensorboard or xprof) of so many updates, after
    the first ones, into `profile` in the run's folder; 0 is none."""
    replay: Annotated[int | None, tyro.conf.Suppress] = None
    """Make this update again, and nothing else (see `sftjax replay`)."""

    def facts(self) -> dict[str, Any]:
        """Return what of this identifies a run: all that its numbers depend on.

        >>> "seed" in Training().facts(), "profile" in Training().facts()
        (True, False)
        """
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in _BESIDE}

    def rules(self) -> list[tuple[str, float]]:
        """Return `train` as rules with rates.

        >>> Training(train=("last:1=0.5", "head")).rules()
        [('last:1', 0.5), ('head', 1.0)]
        """
        rules = []
        for text in self.train or (("new",) if self.adapter else ("last:2",)):
            pattern, _, rate = text.partition("=")
            try:
                rules.append((pattern, float(rate) if rate else 1.0))
            except ValueError:
                raise ValueError(
                    f"--train {text!r}: write PATTERN or PATTERN=RATE, as in 'last:2=0.5'"
                ) from None
        return rules

    @property
    def rows(self) -> int:
        """Rows in one update."""
        per_device = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return per_device * self.row_devices

    @property
    def row_devices(self) -> int:
        """Over how many devices rows are dealt out: all, unless the mesh has other axes too."""
        sizes = parse_mesh(self.mesh, len(target_devices()))
        return sizes.get("data", 1) * sizes.get("fsdp", 1)

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the updates in the run.

        >>> Training(num_train_epochs=0.5).num_steps(30)
        15
        """
        return self.max_steps or max(1, round(self.num_train_epochs * steps_per_epoch))


class Tuned(NamedTuple):
    """What fine-tuning gives."""

    params: PyTree
    """The best weights, whole tree."""
    fit: Fit
    selection: Selection
    description: Description
    strength: float
    """What the dose came to (see `methods.Method.strength`); 0 without one."""
    num_steps: int
