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
    """The command line in processes of its own, on one device, that a test can stop."""

    @staticmethod
    def stopped_and_resumed(options, root):
        """Run into root/whole; into root/cut, killed and resumed; into root/asked, by SIGTERM."""
        job = pathlib.Path(__file__).with_name("kill_command.py")
        one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        # The runs that a test compares compile the same programs: once, like every other test's.
        for name in (
            "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        ):  # fmt: skip
            one_device.setdefault(name.upper(), str(getattr(jax.config, name)))
        done = subprocess.run(
            [sys.executable, str(job), str(root), *options],
            capture_output=True, text=True, env=one_device, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    @staticmethod
    def digest(path):
        """Return the hash of a file."""
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def command():
    """The command line, as a process."""
    return Command


def _saved_images(folder, config, seed=0):
    """Save a random model of images that was "pretrained" to tell three classes."""
    model = build(config, Head("image", ("x", "y", "z")))
    save(folder, model, jax.jit(model.init)(jax.random.key(seed)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3,
                    "image_std": [0.5] * 3, "do_normalize": True})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory) -> pathlib.Path:
    """A ResNet of two small stages, in the Hub's layout."""
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16],
              "depths": [1, 1], "layer_type": "basic"}  # fmt: skip
    return _saved_images(tmp_path_factory.mktemp("tiny-resnet"), config)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> pathlib.Path:
    """A ViT of two small layers, in the Hub's layout."""
    config = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
              "patch_size": 4}  # fmt: skip
    return _saved_images(tmp_path_factory.mktemp("tiny-vit"), config)


@pytest.fixture(scope="session")
def cells(tmp_path_factory) -> pathlib.Path:
    """A manifest of pictures of three kinds, which colour tells apart, from 24 patients."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    colours = {"red": (150, 60, 60), "white": (130, 120, 150), "plate": (70, 60, 150)}
    lines = ["path,label,patient,age"]
    for patient in range(24):
        for number, (name, colour) in enumerate(colours.items()):
            for copy in range(3 if name == "red" else 1):
                pixels = rng.normal(colour, 40, (20, 18, 3)).clip(0, 255).astype(np.uint8)
                file = f"{patient}-{number}-{copy}.png"
                Image.fromarray(pixels).save(folder / file)
                lines.append(f"{file},{name},p{patient},{20 + 3 * patient}")
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")
    return folder / "cells.csv"
