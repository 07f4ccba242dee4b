"""The tokenizer gives transformers' own ids, with nothing switched on."""

import json

import pytest
import tokenizers

from sftjax.hub import load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "##s", "bad", "!"]


@pytest.fixture
def folder(tmp_path):
    """A tiny BERT tokenizer, with padding and truncation on, as files of the Hub often have it."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(WORDS[:5])
    backend.enable_padding(length=8, pad_token="[PAD]")
    backend.enable_truncation(8)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "pad_token_id": 0}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "pad_token": "[PAD]",
                "cls_token": {"__type": "AddedToken", "content": "[CLS]"},
                "model_max_length": 9,
            }
        )
    )
    return tmp_path


def test_neither_padding_nor_truncation_is_on(folder):
    tokenizer = load_tokenizer(folder)
    short, long = tokenizer.encode(["good films", "a " * 20])
    assert short == ([2, 6, 7, 8, 3], [0] * 5)
    assert len(long.ids) == 22


def test_facts_for_batches(folder):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (0, 2, 3, 4)
    assert (tokenizer.vocab_size, tokenizer.max_length) == (len(WORDS), 9)
    assert tokenizer.uses_type_ids
    assert tokenizer.files == ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    assert tokenizer.decode([2, 6, 7, 8, 3]) == "good film ##s"


def test_the_hash_follows_the_files(folder):
    before = load_tokenizer(folder).sha256
    assert load_tokenizer(folder).sha256 == before
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    assert load_tokenizer(folder).sha256 != before


def test_pairs_have_type_ids(folder):
    (pair,) = load_tokenizer(folder).encode(["good"], ["bad film"])
    assert pair == ([2, 6, 3, 9, 7, 3], [0, 0, 0, 1, 1, 1])


def test_words_keep_track_of_their_tokens(folder):
    (sentence,) = load_tokenizer(folder).encode_words([["good", "films", "!"]])
    assert sentence.ids == [2, 6, 7, 8, 10, 3]
    assert sentence.word_ids == [None, 0, 1, 1, 2, None]


def test_without_tokenizer_json_transformers_makes_the_same(folder):
    fast = load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    slow = load_tokenizer(folder)
    texts = ["Good films!", "a bad, bad film"]
    assert slow.encode(texts) == fast.encode(texts)
    assert slow.pad_id == fast.pad_id


@pytest.mark.parametrize(
    ("texts", "pairs", "reason"),
    [
        (["a", None], None, r"row 1 is None.*Fill or remove"),
        (["a"], [float("nan")], r"row 0 is nan \(float\)"),
        ("a", None, "a single string"),
        (["a"], ["b", "c"], "1 texts and 2 second texts"),
    ],
)
def test_what_is_not_text_is_refused(folder, texts, pairs, reason):
    with pytest.raises(ValueError, match=reason):
        load_tokenizer(folder).encode(texts, pairs)


def test_words_must_be_lists(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="row 0 is a string"):
        tokenizer.encode_words(["good film"])
    with pytest.raises(ValueError, match="row 0, word 1 is 3"):
        tokenizer.encode_words([["good", 3]])


def test_damaged_and_missing_files(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text('{"version"')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_without_padding_is_refused(folder):
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[NONE]"}')
    with pytest.raises(ValueError, match="no padding token"):
        load_tokenizer(folder)
