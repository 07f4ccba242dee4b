"""A GGUF file made into a folder of the Hub's layout: config, weights in float32, tokenizer.

What was rounded to few bits stays rounded. llama.cpp keeps the rows of Llama's q and k in another
order, for a rotation of neighbours; here they are put back for the rotation of halves.
"""

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from sftjax.hub.gguf_file import GgufFile
from sftjax.hub.weights import write_text, write_weights

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL, _USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe")
GGUF_FAMILIES = ("llama",)
"""What a GGUF file may call its architecture (SmolLM2 and Mistral call themselves a llama)."""


def folder_of_gguf(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the folder of the Hub's layout that belongs to a GGUF file, made on the first call.

    It lies beside the file, as `<name>.hub`, and takes 4 bytes a parameter.

    Raises:
      ValueError: as `convert_gguf` does.
      OSError: if the folder cannot be written; give `convert_gguf` another.
    """
    path = pathlib.Path(path)
    folder = path.with_name(f"{path.stem}.hub")
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=path.parent) as work:
        made = convert_gguf(path, pathlib.Path(work) / "made")
        if not (folder / "config.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    return folder


def convert_gguf(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> pathlib.Path:
    """Write a GGUF file's model as a folder that `load`, and transformers, open.

    Args:
      path: a `.gguf` file of a Llama (SmolLM2, Mistral).
      folder: where to; made if it is not there.

    Raises:
      ValueError: if the file is damaged, of another architecture, in a quantization that is not
        known, or has a tokenizer or tensors that are not known.
    """
    file, folder = GgufFile(path), pathlib.Path(folder)
    config = config_of_gguf(file)
    tokenizer = _tokenizer(file)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors_of_gguf(file, config))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = _tokenizer_config(file.metadata)
    _write_json(folder / "tokenizer_config.json", settings)
    if template := file.metadata.get("tokenizer.chat_template"):
        write_text(folder / "chat_template.jinja", template)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    _write_json(folder / "config.json", config)  # last: a folder with it is whole
    return folder


def config_of_gguf(file: GgufFile) -> dict[str, Any]:
    """Return the `config.json` that a file's metadata stand for.

    Raises:
      ValueError: if the architecture is not Llama's, or positions are scaled in a way not known.
    """
    meta = file.metadata
    family = meta.get("general.architecture")
    if family not in GGUF_FAMILIES:
        raise ValueError(
            f"{file.path} holds the architecture {family!r}; of GGUF files only 'llama' (Llama, "
            "SmolLM2, Mistral) is read here. Take the model's safetensors instead."
        )
    if "token_embd.weight" not in file:
        raise ValueError(
            f"{file.path} has no tensor token_embd.weight, so it holds no whole model (one part of "
            "several, or an adapter?). Take the model in one file, or its safetensors instead."
        )
    scaling = meta.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ValueError(
            f"{file.path}: rope scaling {scaling!r} of a GGUF file is not read here (only linear "
            "is). Take the model's safetensors instead."
        )
    heads = meta["llama.attention.head_count"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": file.shape("token_embd.weight")[0],
        "hidden_size": meta["llama.embedding_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "intermediate_size": meta["llama.feed_forward_length"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": _short(meta["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _short(meta.get("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
    if (width := meta.get("llama.attention.key_length")) is not None:
        config["head_dim"] = width
    if scaling == "linear":
        factor = _short(meta["llama.rope.scaling.factor"])
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return config


def tensors_of_gguf(file: GgufFile, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a Llama's tensors in float32 under transformers' names.

    Raises:
      ValueError: naming the tensors that are not known.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    names: dict[str, tuple[str, int]] = {}
    unknown = []
    for name in file:
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        stem, _, leaf = name.rpartition(".")
        if block and block[2] in _BLOCK and block[3] == "weight":
            their = f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
            names[name] = (their, heads.get(block[2], 0))
        elif stem in _TOP and leaf == "weight":
            names[name] = (f"{_TOP[stem]}.weight", 0)
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{file.path} holds {len(unknown)} tensors that a Llama has not, "
            f"{', '.join(unknown[:4])} first: what they mean is not known here. Take the model's "
            "safetensors instead."
        )
    return {
        their: unpermuted(file[name], count) if count else file[name]
        for name, (their, count) in names.items()
    }


def unpermuted(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of each head from pairs side by side back to pairs half a head apart.

    >>> unpermuted(np.arange(4)[:, None], heads=1).ravel().tolist()
    [0, 2, 1, 3]
    """
    rows, width = kernel.shape
    return kernel.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(kernel.shape)


def _tokenizer(file: GgufFile) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    meta = file.metadata
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{file.path} has a tokenizer of kind {kind!r} with pre-tokenizer {pre!r}; read here "
            f"is 'gpt2' with one of {', '.join(_PRE_TOKENIZERS)}. Take the model's safetensors and "
            "tokenizer.json instead."
        )
    words, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    before = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3), "isolated")],
    }[pre]
    plain = pre != "llama-bpe"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(w, special=True, normalized=False)
         for w, k in zip(words, kinds, strict=True) if k == _CONTROL]
    )  # fmt: skip
    tokenizer.add_tokens(
        [AddedToken(w, normalized=False)
         for w, k in zip(words, kinds, strict=True) if k == _USER_DEFINED]
    )  # fmt: skip
    return tokenizer


def _tokenizer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    words = meta["tokenizer.ggml.tokens"]
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {ours: meta.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        **{f"{ours}_token": words[i] for ours, i in ids.items() if i is not None},
    }


def _short(value: float) -> float:
    """Return the shortest number that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
