"""A tiny random Llama in the Hub's layout, with the small tokenizer of tests/parity/chat."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

CHAT = pathlib.Path(__file__).parents[1] / "parity" / "chat"


def write_tiny_llama(folder: pathlib.Path) -> pathlib.Path:
    """Write the folder."""
    folder.mkdir(parents=True)
    with np.load(CHAT / "llama.npz") as weights:
        save_file({name: weights[name] for name in weights.files}, folder / "model.safetensors")
    config = json.loads((CHAT / "config.json").read_text())
    template = json.loads((CHAT / "goldens.json").read_text())["template"]
    config |= {"architectures": ["LlamaForCausalLM"], "eos_token_id": 2, "pad_token_id": 2}
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text((CHAT / "tokenizer.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"chat_template": template}))
    return folder


def write_rows(path: pathlib.Path, count: int = 24) -> pathlib.Path:
    """Write conversations of tests/parity/chat that the small tokenizer knows well."""
    rows = json.loads((CHAT / "rows.json").read_text())
    found = (rows["multi"] + [{"messages": row["messages"]} for row in rows["multi"]])[:count]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path
