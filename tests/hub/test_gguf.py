"""GGUF: blocks decoded as ggml decodes them, bad files refused by name, the real SmolLM2 as torch
reads it."""

import pathlib
import struct

import jax
import numpy as np
import pytest

from sftjax.evaluate import compile_generate, read_settings
from sftjax.hub import GgufFile, convert_gguf, find_folder, load, load_tokenizer
from sftjax.hub.gguf_file import QUANTIZATIONS

HERE = pathlib.Path(__file__).parent
KINDS = {how.name: number for number, how in QUANTIZATIONS.items()}
PROMPTS = (
    "What is the capital of France?", "Write one sentence about rain.", "2+2=?",
    "Name three colours.", "Who wrote Hamlet?", "Why is the sky blue?", "What is a prime number?",
    "Translate 'good morning' into Spanish.", "How do bees make honey?", "Tell me a short joke.",
    "What is the boiling point of water?", "Give me a word that rhymes with cat.",
    "Explain gravity to a child.", "List two uses of iron.", "What does DNA stand for?",
    "Is a whale a fish?", "How many days are there in a leap year?", "What is photosynthesis?",
    "Suggest a name for a dog.", "Write a line of Python that prints hello.",
)  # fmt: skip
NEW = 16
"""Tokens of each answer."""


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key, value):
    """A key-value pair of the header."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, list) and isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if isinstance(value, list):
        return text(key) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return text(key) + struct.pack("<II", 4, value)


def write(path, metadata, tensors, version=3):
    """Write a GGUF file of `name -> (shape, type, bytes)`."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(entry(key, value) for key, value in metadata.items())
    at, data = 0, b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", kind, at)
        data += raw + bytes(-len(raw) % 32)
        at = len(data)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


@pytest.mark.parametrize("name", [name for name in KINDS if name != "F32"])
def test_blocks_are_decoded_as_ggml_decodes_them(tmp_path, name):
    with np.load(HERE / "gguf_goldens.npz") as stored:
        raw, values = stored[f"{name}/raw"], stored[f"{name}/values"]
    shape = (len(raw), values.size // len(raw))
    path = write(tmp_path / "a.gguf", {"a": 1}, {"w": (shape, KINDS[name], raw.tobytes())})
    file = GgufFile(path)
    np.testing.assert_array_equal(file["w"], values.reshape(shape))
    assert file.quantization("w") == name
    assert file.metadata == {"a": 1}


def tiny(width=32, **changes):
    """Metadata and tensors of a Llama of one layer."""
    metadata = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64,
        "llama.embedding_length": width, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["<e>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    } | changes  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (4, width), "output_norm": (width,), "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, width), "blk.0.attn_k": (width // 2, width),
        "blk.0.attn_v": (width // 2, width), "blk.0.attn_output": (width, width),
        "blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (64, width), "blk.0.ffn_up": (64, width),
        "blk.0.ffn_down": (width, 64),
    }  # fmt: skip
    tensors = {
        f"{name}.weight": (shape, 0, rng.standard_normal(shape).astype("<f4").tobytes())
        for name, shape in shapes.items()
    }
    return metadata, tensors


def test_a_file_becomes_a_folder_with_everything(tmp_path):
    path = write(tmp_path / "small.gguf", *tiny())
    model, params, report = load(path)
    assert report.new == ()
    assert report.folder == tmp_path / "small.hub" == find_folder(tmp_path)
    assert model.head.kind == "causal-lm"
    assert model.config["rms_norm_eps"] == 1e-5
    file = GgufFile(path)
    there = params["model"]["layers"]["0"]["self_attn"]
    np.testing.assert_array_equal(there["v_proj"]["kernel"].T, file["blk.0.attn_v.weight"])
    # Row 1 of a head of 8 was its row 4 before llama.cpp laid pairs side by side.
    np.testing.assert_array_equal(there["q_proj"]["kernel"].T[4], file["blk.0.attn_q.weight"][1])
    names = {p.name for p in report.folder.iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert list(load_tokenizer(report.folder).encode(["ab"])[0].ids) == [3]


@pytest.mark.parametrize(("metadata", "message"), [
    ({"general.architecture": "mamba"}, "architecture 'mamba'"),
    ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
    ({"tokenizer.ggml.pre": "elvish"}, "pre-tokenizer 'elvish'"),
])  # fmt: skip
def test_what_is_not_read_is_refused_by_name(tmp_path, metadata, message):
    path = write(tmp_path / "a.gguf", *tiny(**metadata))
    with pytest.raises(ValueError, match=message):
        convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_unknown_quantization_is_refused_by_name(tmp_path):
    metadata, tensors = tiny()
    tensors["blk.0.ffn_up.weight"] = ((64, 32), 23, bytes(64))
    with pytest.raises(ValueError, match=r"blk.0.ffn_up.weight first\) are stored as IQ4_XS"):
        GgufFile(write(tmp_path / "a.gguf", metadata, tensors))


def test_unknown_tensors_are_refused(tmp_path):
    metadata, tensors = tiny()
    tensors["rope_freqs.weight"] = ((4,), 0, bytes(16))
    with pytest.raises(ValueError, match=r"1 tensors that a Llama has not, rope_freqs.weight"):
        convert_gguf(write(tmp_path / "a.gguf", metadata, tensors), tmp_path / "out")


@pytest.mark.parametrize("cut", [3, 20, 200, 700, -100])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path = write(tmp_path / "a.gguf", *tiny())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a whole GGUF file"):
        GgufFile(path)


@pytest.mark.assets
@pytest.mark.torch
def test_the_real_smollm2_is_torchs(smollm2):
    """Logits at every place of four prompts; greedy texts of twenty, token for token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params, report = load(smollm2)
    assert report.new == ()
    tokenizer = transformers.AutoTokenizer.from_pretrained(report.folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        report.folder, attn_implementation="eager"
    ).eval()
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in PROMPTS
    ]
    batch = dict(tokenizer(chats, padding=True, padding_side="left", return_tensors="np"))
    batch = {name: np.asarray(batch[name], np.int32) for name in ("input_ids", "attention_mask")}
    ours = load_tokenizer(report.folder).encode(chats)
    for row, ids, mask in zip(ours, batch["input_ids"], batch["attention_mask"], strict=True):
        assert list(row.ids) == ids[mask == 1].tolist()
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    few, real = {name: array[:4] for name, array in batch.items()}, batch["attention_mask"][:4] == 1
    with torch.no_grad():
        logits = theirs(**{name: array[:4] for name, array in tensors.items()}).logits.numpy()
        texts = theirs.generate(**tensors, max_new_tokens=NEW, do_sample=False).numpy()
    found = np.asarray(jax.jit(model.apply)(params, few))
    np.testing.assert_allclose(found[real], logits[real], atol=2e-4)
    settings = read_settings(report.folder, max_new_tokens=NEW)
    said = compile_generate(model.decoder, settings)(params, batch)
    texts = texts[:, batch["input_ids"].shape[1] :]
    for row, length, text_ids in zip(
        np.asarray(said.tokens), np.asarray(said.lengths), texts, strict=True
    ):
        assert row[:length].tolist() == text_ids[:length].tolist()
        assert length == NEW or row[length - 1] in settings.eos_token_id
    assert "Paris" in tokenizer.decode(np.asarray(said.tokens)[0])
