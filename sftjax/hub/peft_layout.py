"""PEFT's words and array layouts for our kinds of adapter: a codec, without files.

Torch keeps a linear layer as (out, in), so that its A is (r, in) and its B (out, r). Where we keep
a difference (DoRA's change of length, (IA)3's difference to 1) PEFT keeps the value itself.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sftjax.adapters import Kind, Plan, Planned, Site, dora, ia3, lora
from sftjax.core import PyTree, flatten

PREFIX = "base_model.model."
"""What every name in a LoRA or (IA)3 folder begins with."""

PARTS = (
    "lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B",
    "lora_magnitude_vector", "ia3_l",
)  # fmt: skip
"""Ends of the names of adapter tensors."""

IGNORED = frozenset({
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode",
    "revision", "task_type",
    "peft_version", "peft_type", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "bias", "megatron_core", "qalora_group_size",
    "ensure_weight_tying", "init_ia3_weights", "r", "lora_alpha", "lora_dropout", "use_rslora",
    "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern", "feedforward_modules",
    "loftq_config", "eva_config", "corda_config",
})  # fmt: skip
"""Fields that are read here, or that do not change what a trained adapter computes."""

RESIDUAL = ("pissa", "olora")
"""Starts that take something off the base, and that can be computed again."""

STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Starts that leave the base as it is."""


def encode(planned: Planned, leaves: Mapping[str, Any], kernel: Any) -> dict[str, np.ndarray]:
    """Return one site's tensors by the ends of their names.

    Args:
      planned: the site and its kind.
      leaves: ours.
      kernel: the base's, whose lengths DoRA changes.
    """
    site, kind = planned
    kept = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
    if kind.name == "ia3":
        factors = 1 + kept["ia3"]
        return {"ia3_l": factors[None] if kind.config["feedforward"] else factors[:, None]}
    if site.leaf == "embedding":
        return {"lora_embedding_A": kept["lora_a"].T, "lora_embedding_B": kept["lora_b"].T}
    tensors = {"lora_A.weight": kept["lora_a"].T, "lora_B.weight": kept["lora_b"].T}
    if kind.name == "dora":
        tensors["lora_magnitude_vector"] = lengths(kernel) + kept["magnitude"]
    return tensors


def decode(planned: Planned, tensors: Mapping[str, np.ndarray], kernel: Any) -> dict[str, Any]:
    """Return one site's leaves: the inverse of `encode`."""
    site, kind = planned
    kept = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    if kind.name == "ia3":
        return {"ia3": jnp.asarray(kept["ia3_l"].reshape(-1) - 1)}
    middle = "embedding_" if site.leaf == "embedding" else ""
    end = "" if middle else ".weight"
    leaves = {
        f"lora_{letter.lower()}": jnp.asarray(kept[f"lora_{middle}{letter}{end}"].T)
        for letter in "AB"
    }
    if kind.name == "dora":
        leaves["magnitude"] = jnp.asarray(kept["lora_magnitude_vector"] - lengths(kernel))
    return leaves


def lengths(kernel: Any) -> np.ndarray:
    """Return the length of each output's weights, (out,)."""
    return np.sqrt(np.square(np.asarray(kernel, np.float64)).sum(0)).astype(np.float32)


def kind_of(config: Mapping[str, Any], module: str, parts: Mapping[str, np.ndarray]) -> Kind:
    """Return the kind of adapter that a folder holds for a module.

    Args:
      config: `adapter_config.json`.
      module: torch's name.
      parts: its tensors by the ends of their names; the rank is theirs.

    Raises:
      ValueError: if the tensors are not those of the config's type, or their rank is another.
    """
    if config["peft_type"] == "IA3":
        return ia3(feedforward=parts["ia3_l"].shape[0] == 1)
    factor = parts.get("lora_A.weight", parts.get("lora_embedding_A"))
    if factor is None:
        raise ValueError(f"{module} has {sorted(parts)} and no A factor; the folder is incomplete")
    rank = _patterned(config.get("rank_pattern"), module, config["r"])
    if factor.shape[0] != rank:
        raise ValueError(
            f"{module}: the config says rank {rank}, and its A factor has {factor.shape[0]} rows; "
            "config and weights are not of one adapter"
        )
    settings: dict[str, Any] = {
        "r": int(rank),
        "lora_alpha": float(_patterned(config.get("alpha_pattern"), module, config["lora_alpha"])),
        "lora_dropout": float(config.get("lora_dropout") or 0.0),
        "use_rslora": bool(config.get("use_rslora")),
    }
    if config.get("use_dora") and "lora_A.weight" in parts:
        return dora(**settings)
    start = str(config.get("init_lora_weights", True)).partition("_")[0]
    return lora(**settings, init_lora_weights=start if start in RESIDUAL else "default")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Check that a config asks for nothing that is not computed here.

    Raises:
      ValueError: naming the field.
    """
    if config.get("peft_type") not in ("LORA", "IA3"):
        raise ValueError(
            f"{where}: peft_type is {config.get('peft_type')!r}; LORA (with rsLoRA, DoRA, PiSSA, "
            "OLoRA) and IA3 are read here"
        )
    for name, value in config.items():
        if value and name not in IGNORED:
            raise ValueError(
                f"{where}: {name}={value!r} changes what the adapter computes and is not known "
                "here; merge the adapter with PEFT and load the merged model"
            )
    start = config.get("init_lora_weights", True)
    if start not in STARTS and str(start).partition("_")[0] not in RESIDUAL:
        raise ValueError(
            f"{where}: init_lora_weights={start!r} changed the base when training began, and that "
            "change is not in the folder; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def config_of(plan: Plan, modules: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `adapter_config.json` that a plan decides.

    Args:
      plan: of LoRA or DoRA sites with the same settings but for rank and alpha, or of (IA)3.
      modules: torch's name of each site.

    Raises:
      ValueError: if no one PEFT config can say what the plan does.
    """
    names = sorted({kind.name for kind in plan.kinds})
    if len(names) > 1 or names[0] not in ("lora", "dora", "ia3"):
        raise ValueError(
            f"this plan holds {', '.join(names)}, and a folder of PEFT's layout one of lora, dora "
            "and ia3; save each kind's plan to a folder of its own, or the merged model"
        )
    base = {"inference_mode": True, "fan_in_fan_out": False, "target_modules": list(modules)}
    if names == ["ia3"]:
        inputs = [
            module
            for module, (_, kind) in zip(modules, plan.sites, strict=True)
            if kind.config["feedforward"]
        ]
        return {"peft_type": "IA3", **base, "feedforward_modules": inputs, "init_ia3_weights": True}
    shared = ("lora_dropout", "use_rslora", "use_dora")
    for name in shared:
        values = {kind.config[name] for kind in plan.kinds}
        if len(values) > 1:
            raise ValueError(
                f"the plan's kinds have {name} {sorted(values)}, and PEFT's config one value; save "
                "each kind's plan to a folder of its own"
            )
    settings = [_saved(kind) for _, kind in plan.sites]
    first = settings[0]
    patterns: dict[str, dict[str, Any]] = {"rank_pattern": {}, "alpha_pattern": {}}
    for module, found in zip(modules, settings, strict=True):
        for pattern, name in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            if found[name] != first[name]:
                patterns[pattern][re.escape(module)] = found[name]
    kept = {name: plan.sites[0].kind.config[name] for name in shared}
    return {
        "peft_type": "LORA", **base, **first, **kept, **patterns, "bias": "none",
        "init_lora_weights": True,
    }  # fmt: skip


def as_plain(leaves: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    r"""Return LoRA factors of twice the rank whose product is $A B - A_0 B_0$.

    That is what a PiSSA or OLoRA adds to the untouched base.
    """
    return {
        "lora_a": jnp.concatenate([leaves["lora_a"], start["lora_a"]], axis=-1),
        "lora_b": jnp.concatenate([leaves["lora_b"], -start["lora_b"]]),
    }


def _saved(kind: Kind) -> dict[str, Any]:
    """Return rank and alpha as they are written: twice the rank, and the same s, for a residual."""
    r, alpha = kind.config["r"], kind.config["lora_alpha"]
    if not kind.starts_at_base:
        alpha *= 2**0.5 if kind.config["use_rslora"] else 2
        r *= 2
    return {"r": r, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's name ends with, as PEFT reads them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def site_of(path: str, base: PyTree) -> Site:
    """Return the site of a base leaf, `.../kernel` or `.../embedding`."""
    module, _, leaf = path.rpartition("/")
    return Site(module, leaf, tuple(flatten(base)[path].shape))
