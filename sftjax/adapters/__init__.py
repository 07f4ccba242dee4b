"""Adapters: small trees beside the weights, which stay what they were."""

from sftjax.adapters.apply import side_branch, tree_merge
from sftjax.adapters.dora import dora
from sftjax.adapters.ia3 import ia3
from sftjax.adapters.kind import Call, Kind, Site
from sftjax.adapters.lora import lora, lora_plus
from sftjax.adapters.merge import add_adapters, merge_adapter, scale_adapter, unmerge_adapter
from sftjax.adapters.plan import Plan, Planned, attach, check_adapter, plan_adapter, shapes_of

__all__ = [
    "Call",
    "Kind",
    "Plan",
    "Planned",
    "Site",
    "add_adapters",
    "attach",
    "check_adapter",
    "dora",
    "ia3",
    "lora",
    "lora_plus",
    "merge_adapter",
    "plan_adapter",
    "scale_adapter",
    "shapes_of",
    "side_branch",
    "tree_merge",
    "unmerge_adapter",
]
