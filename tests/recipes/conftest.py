"""A tiny BERT with a real tokenizer, and tiny data, in folders as a user would have them."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sftjax.hub import save
from sftjax.models import Head, build

GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "awful", "poor", "dull"]
WORDS = [*GOOD, *BAD, "film", "book", "song", "it", "was", "very", "a", "the", "and", "not"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A BERT of one block with random weights, saved in the Hub's layout."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(SPECIALS) + len(WORDS),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    model = build(config, Head("pooled"))
    save(folder, model, model.init(jax.random.key(0)))
    vocab = {word: i for i, word in enumerate(SPECIALS + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 32})
    )
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> pathlib.Path:
    """Sentences whose sentiment is that of their last word."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("text,label\n" + "\n".join(f"{t},{y}" for t, y in sentences(240)) + "\n")
    return path


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Random sentences and their sentiment."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        good = bool(rng.integers(2))
        noun = rng.choice(["film", "book", "song"])
        words = ["the", noun, "was", *["very"] * int(rng.integers(3))]
        rows.append(
            (" ".join([*words, rng.choice(GOOD if good else BAD)]), "pos" if good else "neg")
        )
    return rows


class Command:
    """The command line in a process of its own, on one device, that a test can kill."""

    @staticmethod
    def start(options, folder):
        """Start it and leave it running."""
        command = [sys.executable, "-m", "sftjax.cli", *options, "--output-dir", str(folder)]
        one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        # The runs that a test compares compile the same programs: once, like every other test's.
        for name in (
            "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        ):  # fmt: skip
            one_device.setdefault(name.upper(), str(getattr(jax.config, name)))
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=one_device)

    @classmethod
    def run(cls, options, folder):
        """Run it to its end."""
        assert cls.start(options, folder).wait(timeout=600) == 0

    @staticmethod
    def digest(path):
        """Return the hash of a file."""
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def command():
    """The command line, as a process."""
    return Command
