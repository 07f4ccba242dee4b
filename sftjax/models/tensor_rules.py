"""How the weights of every family are cut over the `tensor` axis of a mesh: a table of patterns.

Layers come in pairs (Shoeybi et al. 2019, arXiv:1909.08053): the first is cut by its outputs, so
that each device has some heads, or some units, of its own; the second by its inputs, so that what
the devices give is added up once, after it. Word tables and output matrices are cut by words,
convolutions by their output channels. What no pattern names (norms, positions, the biases that are
added after a sum) lies whole on every device.

`train.compile_step(step, mesh, TENSOR_RULES)` takes it; an axis that the mesh lacks, or that does
not divide a leaf's, changes nothing.
"""

from jax.sharding import PartitionSpec

from sftjax.core import Rules

_OUTPUTS = (
    *("query", "key", "value"),  # BERT, RoBERTa, ViT
    *("q_lin", "k_lin", "v_lin"),  # DistilBERT
    *("q_proj", "k_proj", "v_proj"),  # Llama and its kin, BART and its kin
    *("SelfAttention/q", "SelfAttention/k", "SelfAttention/v"),  # T5
    *("EncDecAttention/q", "EncDecAttention/k", "EncDecAttention/v"),
    "c_attn",  # GPT-2: queries, keys and values in one; the compiler moves what lies across
    "intermediate/dense",
    *("lin1", "fc1", "c_fc", "wi", "wi_0", "wi_1", "gate_proj", "up_proj"),
    *("pwconv1", "fc1_"),  # ConvNeXt, VGG
)
"""The first of a pair."""

_INPUTS = (
    "output/dense",  # BERT, RoBERTa, ViT: of attention, and of the network
    *("out_lin", "o_proj", "layers/*/*/out_proj", "SelfAttention/o", "EncDecAttention/o", "c_proj"),
    *("lin2", "fc2", "wo", "down_proj", "pwconv2", "fc2_"),
)
"""The second of a pair."""

_CONVOLUTIONS = (
    "convolution",  # ResNet, the stem of EfficientNet
    *("expand_conv", "project_conv", "top_conv"),  # EfficientNet
    "conv",  # VGG
    "downsampling_layer/*",  # ConvNeXt
)
"""Dense convolutions, (H, W, in, out); depthwise ones and patches lie whole."""

_COLUMN = PartitionSpec(None, "tensor")
_ROW = PartitionSpec("tensor")

TENSOR_RULES: Rules = (
    *((f"**/{name}/kernel", _COLUMN) for name in _OUTPUTS),
    *((f"**/{name}/bias", _ROW) for name in _OUTPUTS),
    *((f"**/{name}/kernel", _ROW) for name in _INPUTS),
    *((f"**/{name}/kernel", PartitionSpec(None, None, None, "tensor")) for name in _CONVOLUTIONS),
    *((f"**/{name}/embedding", _ROW) for name in ("word_embeddings", "embed_tokens", "wte")),
    ("**/shared/embedding", _ROW),  # T5, BART
    ("**/lm_head/kernel", _COLUMN),
)
"""`(pattern, spec)`; the first that matches decides."""
