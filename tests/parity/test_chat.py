"""Chat on real assets: SmolLM2's tokenizer against TRL's ids, and how full packed rows are."""

import importlib.util
import pathlib

import numpy as np
import pytest

from sftjax.data import ChatBatches, ChatTemplate, encode_chat, fetch, read

ROOT = pathlib.Path(__file__).parents[1]


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm2(asset_folder):
    """Return SmolLM2's tokenizer and template."""
    from sftjax.hub import load_chat_files, load_tokenizer

    folder = asset_folder("smollm2-135m-instruct")
    return load_tokenizer(folder), load_chat_files(folder)


@pytest.mark.assets
def test_ids_of_the_real_tokenizer_are_those_of_trl(smollm2):
    tokenizer, _ = smollm2
    chat = load_module(ROOT / "data" / "test_chat.py")
    assert chat.check_against_trl("smollm2", tokenizer.backend) == 2 * (64 + 16 + 8)


@pytest.mark.assets
def test_real_conversations_fill_their_rows(smollm2):
    tokenizer, files = smollm2
    table = read(str(fetch("construction-faq") / "faq-en-sharegpt.jsonl"))
    template = ChatTemplate(files.template, files.bos_token, files.eos_token)
    rows = encode_chat(
        table, tokenizer, template, max_length=1024, learn="assistant", end_of_turn="turn",
        on_long="refuse", on_problem="refuse",
    )  # fmt: skip
    assert len(rows) == 503
    # 503 answers that the template ends with <|im_end|> and a line's end.
    ends = [
        np.flatnonzero(weights)[-1] + 1 == len(ids)
        for ids, weights in map(rows.__getitem__, range(503))
    ]
    assert all(ends)
    packed, padded = ChatBatches(rows, 1), ChatBatches(rows, 8, packing=False)
    assert packed.report.filled >= 0.97
    assert packed.report.rows_per_update > 8
    assert padded.report.filled < packed.report.filled
