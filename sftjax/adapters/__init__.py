"""Adapters: small trees beside the weights, which stay what they were."""

from sftjax.adapters.apply import side_branch, tree_merge
from sftjax.adapters.bank import adapter_bank, stack_adapters
from sftjax.adapters.bottleneck import HOULSBY, PFEIFFER, bottleneck
from sftjax.adapters.describe import AdapterDescription, AdapterRow, describe_adapter
from sftjax.adapters.dora import dora
from sftjax.adapters.ia3 import ia3
from sftjax.adapters.kind import Call, Kind, Site
from sftjax.adapters.lora import lora, lora_plus
from sftjax.adapters.merge import add_adapters, merge_adapter, scale_adapter, unmerge_adapter
from sftjax.adapters.on_quantized import on_quantized
from sftjax.adapters.plan import Plan, Planned, attach, check_adapter, plan_adapter, shapes_of
from sftjax.adapters.prefix import prefix_tuning
from sftjax.adapters.product import (
    anchored_change,
    base_outputs,
    change_penalty,
    held_leaves,
    linear_leaves,
    reference_from_base,
    with_adapter,
)
from sftjax.adapters.prompt import prompt_tuning
from sftjax.adapters.quantize import (
    dequantize,
    dequantize_tree,
    describe_quantized,
    quantize,
    quantize_base,
)
from sftjax.adapters.words import ADAPTERS, parse_adapter, plan_of_words

__all__ = [
    "ADAPTERS",
    "HOULSBY",
    "PFEIFFER",
    "AdapterDescription",
    "AdapterRow",
    "Call",
    "Kind",
    "Plan",
    "Planned",
    "Site",
    "adapter_bank",
    "add_adapters",
    "anchored_change",
    "attach",
    "base_outputs",
    "bottleneck",
    "change_penalty",
    "check_adapter",
    "dequantize",
    "dequantize_tree",
    "describe_adapter",
    "describe_quantized",
    "dora",
    "held_leaves",
    "ia3",
    "linear_leaves",
    "lora",
    "lora_plus",
    "merge_adapter",
    "on_quantized",
    "parse_adapter",
    "plan_adapter",
    "plan_of_words",
    "prefix_tuning",
    "prompt_tuning",
    "quantize",
    "quantize_base",
    "reference_from_base",
    "scale_adapter",
    "shapes_of",
    "side_branch",
    "stack_adapters",
    "tree_merge",
    "unmerge_adapter",
    "with_adapter",
]
