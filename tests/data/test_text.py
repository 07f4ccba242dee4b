"""Tokenised once, cut as the tokenizers library cuts, and labels on the first sub-tokens."""

import dataclasses

import numpy as np
import pytest
import tokenizers

from sftjax.data import Table, encode, encode_words, fetch, token_labels
from sftjax.data.text import _longest_first

WORDS = ["[PAD]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "##a", "##b", "good", "film", "##s"]
BERT = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA = ("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B [SEP]")


@dataclasses.dataclass
class Toy:
    """A word-piece tokenizer with the interface of a real one; counts its calls."""

    template: tuple[str, str] = BERT
    pad_id: int = 0
    sha256: str = "toy"
    uses_type_ids: bool = True
    calls: int = 0

    def __post_init__(self):
        vocab = {word: index for index, word in enumerate(WORDS)}
        self.backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[PAD]"))
        self.backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        single, pair = self.template
        self.backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )

    def encode(self, texts, pairs=None):
        self.calls += 1
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [(row.ids, row.type_ids) for row in self.backend.encode_batch(rows)]

    def encode_words(self, sentences):
        self.calls += 1
        rows = self.backend.encode_batch(sentences, is_pretokenized=True)
        return [(row.ids, row.type_ids, row.word_ids) for row in rows]


def row(encoded, i, field="ids"):
    start, stop = encoded.offsets[i : i + 2]
    return getattr(encoded, field)[start:stop].tolist()


def table(**columns):
    return Table(columns, name="x.csv")


def test_rows_are_the_tokenizers_own():
    texts = ["good films", "a", "ab c"]
    encoded = encode(table(text=texts), Toy(), max_length=16)
    assert [row(encoded, i) for i in range(3)] == [[1, 10, 11, 12, 2], [1, 3, 2], [1, 3, 9, 5, 2]]
    assert encoded.ids.dtype == np.int32
    assert (encoded.truncated, encoded.lost, encoded.pad_id) == (0, 0, 0)
    pair = encode(table(a=["a"], b=["b c"]), Toy(), "a", "b", max_length=16)
    assert row(pair, 0, "type_ids") == [0, 0, 0, 1, 1, 1]
    assert encode(table(text=texts), Toy(uses_type_ids=False), max_length=16).type_ids is None


@pytest.mark.parametrize("template", [BERT, ROBERTA])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("max_length", [6, 7, 8, 11])
def test_truncation_is_that_of_the_tokenizers_library(template, paired, max_length):
    rng = np.random.default_rng(max_length)
    draw = lambda: " ".join(rng.choice(["ab", "c", "good", "films"], rng.integers(1, 9)))  # noqa: E731
    first, second = [draw() for _ in range(60)], [draw() for _ in range(60)]
    ours = encode(
        table(text=first, pair=second),
        Toy(template),
        pair="pair" if paired else None,
        max_length=max_length,
    )
    reference = Toy(template)
    reference.backend.enable_truncation(max_length)
    expected = reference.encode(first, second if paired else None)
    assert [row(ours, i) for i in range(60)] == [list(ids) for ids, _ in expected]
    assert [row(ours, i, "type_ids") for i in range(60)] == [list(types) for _, types in expected]
    whole = Toy(template).encode(first, second if paired else None)
    over = [max(len(ids) - max_length, 0) for ids, _ in whole]
    assert (ours.truncated, ours.lost) == (sum(n > 0 for n in over), sum(over))
    assert ours.truncated > 0


def test_both_texts_fit_in_the_room_and_none_gives_more_than_it_must():
    for first in range(1, 12):
        for second in range(1, 12):
            for room in range(2, 24):
                kept = _longest_first(first, second, room)
                assert sum(kept) == min(first + second, room)
                assert kept[0] <= first
                assert kept[1] <= second


def test_a_text_that_is_too_long_can_be_refused():
    rows = table(text=["a", "a b c d e", "a b c d"])
    with pytest.raises(ValueError, match=r"x.csv rows 2, 3: up to 7 tokens, and at most 5 are"):
        encode(rows, Toy(), max_length=5, on_long="error")
    with pytest.raises(ValueError, match='on_long is "truncate" or "error"'):
        encode(rows, Toy(), max_length=5, on_long="drop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="max_length=2 leaves no room beside 2 special tokens"):
        encode(rows, Toy(), max_length=2)


def test_missing_text_is_named_before_anything_is_tokenised():
    tokenizer = Toy()
    with pytest.raises(ValueError, match=r"x.csv row 2: column 'pair' holds no text"):
        encode(table(text=["a", "b"], pair=["a", None]), tokenizer, pair="pair", max_length=8)
    assert tokenizer.calls == 0


def same(one, two):
    return all(
        np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )


def test_the_second_time_it_is_read_from_the_cache(tmp_path):
    tokenizer, rows = Toy(), table(text=["good films", "a b c d e"], label=[0, 1])
    first = encode(rows, tokenizer, max_length=5, cache=tmp_path)
    calls = tokenizer.calls
    again = encode(table(text=rows["text"], label=[1, 1]), tokenizer, max_length=5, cache=tmp_path)
    assert same(first, again)
    assert first.truncated == again.truncated == 1
    assert tokenizer.calls == calls
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["text", "tokenizer", "max_length", "on_long", "column"])
def test_whatever_changes_the_result_changes_the_cache(tmp_path, change):
    encode(table(text=["a b"]), Toy(), max_length=8, cache=tmp_path)
    tokenizer = Toy(sha256="other") if change == "tokenizer" else Toy()
    rows = table(text=["a b"], text2=["a b"]) if change != "text" else table(text=["a c"])
    encode(
        rows,
        tokenizer,
        "text2" if change == "column" else "text",
        max_length=9 if change == "max_length" else 8,
        on_long="error" if change == "on_long" else "truncate",
        cache=tmp_path,
    )
    assert tokenizer.calls == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other rows"])
def test_a_damaged_cache_is_warned_of_and_made_again(tmp_path, damage):
    rows, tokenizer = table(text=["good films", "a b"]), Toy()
    first = encode(rows, tokenizer, max_length=8, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    middle = content.index(first.ids.tobytes()) + 4
    if damage == "other rows":
        encode(table(text=["a"]), Toy(), max_length=8, cache=tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
    path.write_bytes(
        {
            "flip": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            "truncate": content[: len(content) // 2],
            "empty": b"",
            "other rows": content,
        }[damage]
    )
    with pytest.warns(UserWarning, match="is damaged .* made again"):
        again = encode(rows, tokenizer, max_length=8, cache=tmp_path)
    assert same(first, again)
    assert same(first, encode(rows, tokenizer, max_length=8, cache=tmp_path))
    assert tokenizer.calls == 2


def test_the_first_sub_token_of_a_word_has_its_label():
    rows = table(words=[["good", "films"], "ab c"], tags=[["O", "B"], ["B", "O"]])
    labels = token_labels(rows, "tags")
    encoded = encode_words(rows, Toy(), labels=labels, max_length=8)
    assert labels.names == ("B", "O")
    assert row(encoded, 0) == [1, 10, 11, 12, 2]
    assert row(encoded, 0, "token_labels") == [-100, 1, 0, -100, -100]
    assert row(encoded, 1, "token_labels") == [-100, 0, -100, 1, -100]


def test_cut_words_keep_the_special_tokens_and_lose_their_labels(tmp_path):
    rows = table(words=["a b c d e"], tags=["O B O B O"])
    labels = token_labels(rows, "tags")
    encoded = encode_words(rows, Toy(), labels=labels, max_length=5, cache=tmp_path)
    assert row(encoded, 0) == [1, 3, 4, 5, 2]
    assert row(encoded, 0, "token_labels") == [-100, 1, 0, 1, -100]
    assert (encoded.truncated, encoded.lost) == (1, 2)
    swapped = token_labels(rows, "tags", labels=["O", "B"])
    other = encode_words(rows, Toy(), labels=swapped, max_length=5, cache=tmp_path)
    assert row(other, 0, "token_labels") == [-100, 0, 1, 0, -100]


def test_words_and_labels_must_match():
    rows = table(words=["a b", "a b c"], tags=["O B", "O B"])
    with pytest.raises(ValueError, match=r"x.csv row 2: 3 words in column 'words' and 2 labels"):
        encode_words(rows, Toy(), labels=token_labels(rows, "tags"), max_length=8)
    with pytest.raises(ValueError, match=r"x.csv rows 1, 2, 3: column 'words' holds no list of wo"):
        encode_words(table(words=[None, [], ["a", 3]]), Toy(), max_length=8)
    with pytest.raises(ValueError, match=r"x.csv row 2: column 'words' holds a word that the tok"):
        encode_words(table(words=[["a"], ["a", "\t"]]), Toy(), max_length=8)


@pytest.mark.assets
def test_the_real_tokenizer_is_cut_as_its_library_cuts():
    file = str(fetch("minilm-l6", progress=False) / "tokenizer.json")
    tokenizer, reference = Toy(), tokenizers.Tokenizer.from_file(file)
    tokenizer.backend = tokenizers.Tokenizer.from_file(file)
    tokenizer.backend.no_truncation()
    tokenizer.backend.no_padding()
    texts = ["Unbelievably good, isn't it?", "naïve café 😀 " * 9, "one"]
    encoded = encode(table(text=texts), tokenizer, max_length=12)
    reference.no_padding()
    reference.enable_truncation(12)
    assert [row(encoded, i) for i in range(3)] == [e.ids for e in reference.encode_batch(texts)]
    words = encode_words(table(words=[["Unbelievably", "good"]]), tokenizer, max_length=12)
    assert [label for label in row(words, 0, "token_labels") if label != -100] == [0, 0]
