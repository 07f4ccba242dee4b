"""What does a step on pictures cost: beside a loop by hand, beside torch, and with augmentation?

    python benchmarks/images_speed.py --by-hand  # the first table, about 3 minutes on 2 cores
    python benchmarks/images_speed.py            # the others, about 8 minutes
    python benchmarks/images_speed.py --quick    # about 2 minutes: few turns

Random weights, random pictures (16 of 96 x 96), AdamW; batch norms use their running statistics, as
in transfer, but for the rows that say they follow the batch. Everything takes turns in one run.

1. `make_step` and `compile_step` beside a jitted `value_and_grad` and `apply_updates` by hand:
   with the gradient's norm, as ours gives it for the log, and with the loss alone on both sides.
2. Our step beside transformers' module of the same network on torch (channels last), full and head
   alone; the script stops if the first losses differ.
3. The same step with augmentation in it.

Expect: by hand within 2 %; beside torch it depends on processor and network;
augmentation by crop and flip under a tenth of the step.
"""

import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pairs
import peer
from torch_pictures import LEARNING_RATE, pictures_of, torch_side

LITE = {
    "model_type": "efficientnet", "width_coefficient": 1.0, "depth_coefficient": 1.0,
    "hidden_dim": 1280, "hidden_act": "relu6", "squeeze_expansion_ratio": 0, "padding": "same",
    "fixed_stem_and_head": True, "dropout_rate": 0.0, "drop_connect_rate": 0.0,
}  # fmt: skip
B0 = {
    "model_type": "efficientnet", "width_coefficient": 1.0, "depth_coefficient": 1.0,
    "hidden_dim": 1280, "dropout_rate": 0.0, "drop_connect_rate": 0.0,
    "depthwise_padding": [5, 16],
}  # fmt: skip
RESNET = {
    "model_type": "resnet", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2], "layer_type": "basic",
}  # fmt: skip
NETWORKS = {"EfficientNet-lite0": LITE, "EfficientNet-B0": B0, "ResNet-18": RESNET}
AUGMENTS = {"crop, flip": ("crop", "flip"), "crop, flip, colour": ("crop", "flip", "colour")}


def main() -> None:
    """Time, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=3)
    options.add_argument("--rows", type=int, default=16, help="pictures of a batch (16)")
    options.add_argument("--side", type=int, default=96, help="pixels of a side (96)")
    options.add_argument("--by-hand", action="store_true", help="the first table alone")
    options.add_argument("--quick", action="store_true", help="2 turns of 2 steps")
    options.add_argument("--serve", action="store_true", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        peer.serve(torch_side)
        return
    if args.quick:
        args.turns, args.steps = 2, 2
    from sftjax.train import keep_freed_memory

    keep_freed_memory()
    watch = pairs.Watch()
    facts: dict[str, Any] = {}
    name, parts = "images_speed", (torch_table, augment_table)
    if args.by_hand:
        name, parts = "images_by_hand", (by_hand_table,)
    tables = [part(args, facts) for part in parts]
    pairs.publish(name, watch.facts(), tables, {"results": facts}, args.output)


def by_hand_table(args: Any, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Time our step beside one written for the network alone."""
    rows = []
    for name in ("EfficientNet-lite0", "ResNet-18"):
        model, params = network(name)
        batch = on_device(pictures_of(args.rows, args.side))
        calls = {
            "sftjax": ours(model, params, "full", batch),
            "by hand": by_hand(model, params, batch),
            "sftjax alone": ours(model, params, "full", batch, grad_norm=False),
            "by hand alone": by_hand(model, params, batch, norm=False),
        }
        timings = pairs.alternate(
            {side: pairs.rounds_of(call, 1) for side, call in calls.items()},
            args.turns * args.steps,
            tell=print,
        )
        rows.append(line(name, timings, "sftjax", "by hand"))
        alone = line(
            f"{name}, the loss alone", timings, "sftjax alone", "by hand alone", "sftjax", "by hand"
        )
        rows.append(alone)
        facts[f"{name} by hand"] = timings
    return rows


def torch_table(args: Any, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Time our step beside torch's."""
    from sftjax.hub import save

    rows = []
    modes = {"full": "full", "full, batch norms follow": "adapt", "head only": "head"}
    with (
        tempfile.TemporaryDirectory() as folder,
        peer.Peer([sys.executable, __file__, "--serve"]) as torch,
    ):
        for name in ("ResNet-18", "EfficientNet-B0"):
            model, params = network(name)
            home = str(save(pathlib.Path(folder) / name, model, params))
            for what, mode in modes.items():
                if mode == "adapt" and name != "ResNet-18":
                    continue  # transformers hands TensorFlow's momentum to torch's batch norms
                words = {"folder": home, "mode": mode, "rows": args.rows, "side": args.side}
                torch.ask(["load", words])
                batch = on_device(pictures_of(args.rows, args.side))
                call = ours(model, params, mode, batch)
                _, _, theirs = torch.ask(["round", {"steps": 2}])
                mine = [float(call()[1]["loss"]) for _ in range(2)]
                apart = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
                if apart > 1e-2:
                    raise RuntimeError(f"{name}, {what}: losses {mine} and {theirs}")
                timings = pairs.alternate(
                    {
                        "sftjax": pairs.rounds_of(call, args.steps),
                        "torch": lambda: pairs.Timing(
                            *torch.ask(["round", {"steps": args.steps}])[:2]
                        ),
                    },
                    args.turns,
                    tell=print,
                )
                found = line(f"{name}, {what}", timings, "sftjax", "torch")
                rows.append(found | {"losses differ": f"{apart:.1e}"})
                facts[f"{name}, {what}"] = timings
    return rows


def augment_table(args: Any, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Time the step with changes at random in it beside the step that only normalizes."""
    import jax

    rows = []
    for name in ("EfficientNet-lite0", "ResNet-18"):
        model, params = network(name)
        batch = raw(args.rows, args.side)
        calls = {"plain": ours(model, params, "full", batch, augment=())}
        for words in AUGMENTS.values():
            calls[", ".join(words)] = ours(model, params, "full", batch, augment=words)
        timings = pairs.alternate(
            {what: pairs.rounds_of(call, args.steps) for what, call in calls.items()},
            args.turns,
            tell=print,
        )
        for words in AUGMENTS:
            rows.append(line(f"{name}, {words}", timings, words, "plain", "augmented", "plain"))
        facts[f"{name} augmented"] = timings
    jax.clear_caches()
    return rows


def line(
    name: str, timings: Any, one: str, other: str, called: str = "", beside: str = ""
) -> dict[str, Any]:
    """Return a row of a table: both medians and their ratio."""
    found = pairs.ratio(timings[one], timings[other])
    return {
        "step": name,
        f"{called or one}, ms": f"{pairs.median(timings[one]).wall * 1e3:.1f}",
        f"{beside or other}, ms": f"{pairs.median(timings[other]).wall * 1e3:.1f}",
        "ratio (min..max of a turn)": str(found),
        "CPU time": f"{found.cpu:.3f}",
    }


def network(name: str) -> tuple[Any, Any]:
    """Return a network and random weights (by NumPy: `init` compiles for longer than all of it)."""
    import numpy as np

    from sftjax.core import map_with_path
    from sftjax.models import Head, build

    model = build(NETWORKS[name], Head("image", tuple(f"class {k}" for k in range(10))))
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: Any) -> np.ndarray:
        if path.endswith("kernel"):
            fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
            draws = rng.standard_normal(leaf.shape, dtype=np.float32)
            return draws * np.float32((2 / fan_in) ** 0.5)
        ones = path.endswith(("scale", "var"))
        return np.full(leaf.shape, float(ones), np.float32)

    return model, on_device(map_with_path(draw, model.shapes()))


def on_device(tree: Any) -> Any:
    """Return a tree as arrays of the device."""
    import jax

    return jax.device_put(tree)


def raw(rows: int, side: int) -> dict[str, Any]:
    """Return a batch of pixels as they are decoded."""
    import numpy as np

    batch = pictures_of(rows, side)
    pixels = np.clip(batch["pixel_values"] * 40 + 128, 0, 255).astype(np.uint8)
    return on_device({**batch, "pixel_values": pixels, "index": np.arange(rows, dtype=np.int32)})


def ours(
    model: Any,
    params: Any,
    mode: str,
    batch: Any,
    augment: tuple[str, ...] | None = None,
    *,
    grad_norm: bool = True,
) -> Callable[[], Any]:
    """Return a call that makes one update, the way the recipes do it."""
    import jax
    import optax

    from sftjax.data import Processor, augmentation
    from sftjax.models import statistics_of, statistics_policy, take_statistics
    from sftjax.objectives import augmented, classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, make_step

    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    # The word "head" would take an EfficientNet's top convolution too, which lies above the blocks.
    rule = "classifier" if mode == "head" else "all"
    trainable = select(params, rule, still=statistics_of(params)).trainable
    objective, rest, statistics = classification(model.apply), params, None
    if mode == "adapt":
        policy = statistics_policy(params, trainable, "adapt")
        rest, statistics = take_statistics(params, policy.adapt)
        objective = following(model, policy)
    if augment is not None:
        objective = augmented(objective, augmentation(augment, Processor((1, 1)), 10))
    state, fixed = init(rest, trainable, tx, jax.random.key(0), model_state=statistics)
    step = compile_step(make_step(objective, tx, grad_norm=grad_norm))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, fixed, batch)
        return state, metrics

    return call


def following(model: Any, policy: Any) -> Any:
    """Return the recipes' objective of classes in which batch norms follow the batch."""
    from sftjax.objectives import classification
    from sftjax.recipes import norms

    asked = norms.Norms("adapt", model.apply_moving)
    return norms.filled(norms.following(classification, asked, policy)(model.apply))


def by_hand(model: Any, params: Any, batch: Any, *, norm: bool = True) -> Callable[[], Any]:
    """Return a call that makes one update, the way one would write it for this model alone.

    With `norm` it returns the gradient's norm too, as ours does for the log.
    """
    import functools

    import flax.traverse_util as flat
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    leaves = flat.flatten_dict(jax.tree.map(jnp.copy, params))
    held = {path: leaf for path, leaf in leaves.items() if path[-1] in ("mean", "var")}
    moving = {path: leaf for path, leaf in leaves.items() if path not in held}
    opt_state = tx.init(moving)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(moving: Any, opt_state: Any, held: Any, batch: Any) -> Any:
        def loss_of(moving: Any) -> Any:
            logits = model.apply(flat.unflatten_dict({**moving, **held}), batch)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            return each.mean()

        loss, grads = jax.value_and_grad(loss_of)(moving)
        updates, opt_state = tx.update(grads, opt_state, moving)
        told = (loss, optax.tree.norm(grads)) if norm else loss
        return optax.apply_updates(moving, updates), opt_state, told

    def call() -> Any:
        nonlocal moving, opt_state
        moving, opt_state, loss = step(moving, opt_state, held, batch)
        return moving, opt_state, loss

    return call


if __name__ == "__main__":
    main()
