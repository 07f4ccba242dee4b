"""The same rows come out of every format, and each bad file is named by file and line."""

import json

import numpy as np
import pytest

from sftjax.data import columns_of, read, splits

TEXTS = ["plain", 'a "quoted", text', "café ☕", "ends with\u2028separator"]
LABELS = [1, 0, 1, 0]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_as(path):
    if path.suffix == ".csv":
        rows = [
            f'"{text.replace(chr(34), chr(34) * 2)}",{label}'
            for text, label in zip(TEXTS, LABELS, strict=True)
        ]
        return write(path, "\r\n".join(["text,label", *rows]) + "\r\n")
    if path.suffix == ".tsv":
        rows = [f"{text}\t{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
        return write(path, "\n".join(["text\tlabel", *rows]))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": LABELS}), path)
        return path
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    return write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    table = read(write_as(tmp_path / f"data{ending}"), "train")
    assert table["text"] == TEXTS
    assert [int(value) for value in table["label"]] == LABELS
    assert (table.name, table.split) == (str(tmp_path / f"data{ending}"), "train")


def test_csv_keeps_what_the_standard_allows(tmp_path):
    long = "x" * 200_000
    path = write(tmp_path / "a.csv", f'\ufefftext,label\n\n"two\nlines",1\n"{long}",0\n')
    assert read(path)["text"] == ["two\nlines", long]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a.csv is empty \(0 bytes\)"),
        ("a.csv", b"text,label\n", r"a.csv holds a header \(text, label\) and no rows"),
        ("a.csv", b"text,label\nok,1\nb\xe9,0\n", r"a.csv, line 3: byte 17 \(0xe9\) is not UTF-8"),
        ("a.csv", b"text,label\nok,1\na,b,0\n", r"a.csv, line 3: 3 fields where the header has 2"),
        ("a.csv", b'text,label\n"a\nb",1\nc\n', r"a.csv, line 4: 1 fields where"),
        ("a.csv", b'text,label\n"open,1\n', r"a.csv, line 2: unexpected end of data"),
        ("a.csv", b"text,text\na,b\n", r"two columns have the same name"),
        ("a.tsv", b"text\tlabel\na\n", r"a.tsv, line 2: 1 fields"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl, line 2: not JSON at character 10"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a.jsonl, line 2: a JSON list and not an object"),
        ("a.jsonl", b"\n\n", r"holds only blank lines"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a.jsonl, line 1: byte 10 \(0xff\) is not UTF-8"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet is not a whole Parquet file"),
        ("a.xlsx", b"PK", r"the ending '.xlsx' is of no format that is read here \(\.csv"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_keys_that_a_line_lacks_are_missing_values(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "more": 2}\n')
    table = read(path)
    assert table["label"] == [1, None]
    assert table["more"] == [None, 2]


def test_parquet_keeps_nulls_and_the_class_names_of_its_schema(tmp_path):
    import pyarrow
    import pyarrow.parquet

    names = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    content = pyarrow.table({"label": [0, 1], "score": [0.5, None], "words": [["a", "b"], ["c"]]})
    content = content.replace_schema_metadata({"huggingface": json.dumps(names)})
    pyarrow.parquet.write_table(content, tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    assert table.label_names == {"label": ("neg", "pos")}
    assert isinstance(table["label"], np.ndarray)
    assert table["score"] == [0.5, None]
    assert table["words"] == [["a", "b"], ["c"]]


def test_a_folder_has_splits_by_the_names_of_its_files(tmp_path):
    write(tmp_path / "train.csv", "text\na\n")
    write(tmp_path / "Val.jsonl", '{"text": "b"}\n')
    write(tmp_path / "README.md", "no data")
    assert splits(tmp_path) == ("train", "validation")
    assert read(tmp_path, "validation")["text"] == ["b"]
    assert splits(tmp_path / "train.csv") == ()
    with pytest.raises(ValueError, match="there is no split 'test'; it has train, validation"):
        read(tmp_path, "test")
    with pytest.raises(ValueError, match="name the split to read; it has train, validation"):
        read(tmp_path)
    write(tmp_path / "dev.csv", "text\nc\n")
    with pytest.raises(ValueError, match="could both be the validation split"):
        read(tmp_path, "train")


def test_what_is_not_there_is_said(tmp_path):
    write(tmp_path / "reviews.csv", "text\na\n")
    with pytest.raises(
        FileNotFoundError, match=r"no file or folder .*review.csv. Did you mean .*s.csv"
    ):
        read(tmp_path / "review.csv")
    with pytest.raises(FileNotFoundError) as told:
        read(tmp_path / "nowhere.csv")
    assert "Did you mean" not in str(told.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no train, validation or test file"):
        read(tmp_path / "empty", "train")


def test_tfds_by_name_with_text_as_str(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=5):
        table = read("tfds:ag_news_subset:train", data_dir=tmp_path)
        again = read("tfds:ag_news_subset:1.0.0", "train", data_dir=tmp_path)
    assert len(table) == len(again) == 5
    assert all(isinstance(text, str) for text in table["title"])
    assert table["label"].dtype.kind == "i"
    assert table.label_names["label"][0] == "World"
    assert table.name == "tfds:ag_news_subset/1.0.0"


def test_the_summaries_of_tfds_by_name(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=3):
        table = read("tfds:cnn_dailymail", "train", data_dir=tmp_path)
    assert columns_of(table, None, None) == ("article", "highlights")
    assert all(isinstance(text, str) for text in table["article"])
    with pytest.raises(ValueError, match="TFDS cannot download it by itself"):
        read("tfds:xsum", "train", data_dir=tmp_path)


def test_tfds_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="TFDS knows no data set 'no_such_set'"):
        read("tfds:no_such_set:train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="names the split 'train', and 'test' was asked for"):
        read("tfds:rated_sentences/movie:train", "test", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"is not tfds:NAME"):
        read("tfds:rated_sentences/movie:train:test", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"not prepared in .*sftjax.data.prepare_sentences\(sft"):
        read("tfds:rated_sentences/movie:train", data_dir=tmp_path)
