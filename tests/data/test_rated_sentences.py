"""No document and no repeated sentence is on two sides of a split, and TensorFlow is not needed."""

import io
import subprocess
import sys
import tarfile
from collections import defaultdict

import pytest

from sftjax.data import fetch, prepare_sentences, read, retrieval_set, splits
from sftjax.data import rated_sentences as rated


def write_archive(folder, **lines):
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / rated.ARCHIVE, "w:gz") as archive:
        for domain, name in rated.FILES.items():
            content = "\r\n".join(lines.get(domain, ["1\t1.0\tgood"])).encode()
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("rated")
    archive = write_archive(
        root / "archive",
        movie=[f"{i}\t{(-1) ** i * 2.5}\tfilm number {i} &amp; café" for i in range(1, 61)]
        + ["61\t0.4\tneither here nor there", "62\t3.0\tFilm number 7, & CAFÉ!"],
        amazon=[
            f"{d}_{s}\t{s - 2.5}\tproduct {d} said {s}" for d in range(1, 21) for s in (1, 2, 4)
        ],
        tweets=["1\t-3\t:(", "2\t3\t:)"],
        nyt=[f"{d}_{s}\t0.1\tarticle {d} line {s}" for d in range(1, 31) for s in (1, 2, 3)]
        + ["31_1\t1.0\tArticle 4, line 2", "31_2\t1.0\tits own line"],
    )
    return archive, root / "tfds"


def test_neutral_and_repeated_sentences_are_left_out_and_counted(toy):
    archive, data_dir = toy
    builder = prepare_sentences(archive, data_dir, ["movie"])["movie"]
    metadata = builder.info.metadata
    assert metadata["sentences_in_archive"] == 62
    assert metadata["left_out_as_repeated"] == 1
    assert metadata["left_out_as_neutral"] == 1
    assert sum(split.num_examples for split in builder.info.splits.values()) == 60
    kept = [sum(counts.values()) for counts in metadata["labels"].values()]
    assert sum(kept) == 60
    assert splits("tfds:rated_sentences/movie", data_dir=data_dir) == tuple(rated.SHARES)


def test_the_table_has_text_rating_and_named_classes(toy):
    archive, data_dir = toy
    prepare_sentences(archive, data_dir, ["movie"])
    table = read("tfds:rated_sentences/movie", "train+validation+test", data_dir=data_dir)
    rows = dict(zip(table["id"], range(len(table)), strict=True))
    assert table["text"][rows["movie/3"]] == "film number 3 & café"
    assert table["rating"][rows["movie/3"]] == -2.5
    assert [table["label"][rows[f"movie/{i}"]] for i in (3, 4)] == [0, 1]
    assert table.label_names == {"label": ("negative", "positive")}
    assert set(table["domain"]) == {"movie"}


def test_with_every_rating_the_neutral_label_is_minus_one(toy):
    archive, data_dir = toy
    prepare_sentences(archive, data_dir, ["movie_rated"])
    table = read("tfds:rated_sentences/movie_rated:train+validation+test", data_dir=data_dir)
    assert len(table) == 61
    assert table["label"][table["id"].index("movie/61")] == -1


def crossings(sentences):
    """Documents, and words, that are in more than one split."""
    sides = defaultdict(set)
    for sentence, split in sentences:
        sides[sentence.document].add(split)
        sides["words: " + rated.words_of(sentence.text)].add(split)
    return [name for name, where in sides.items() if len(where) > 1]


def test_no_document_and_no_repeat_crosses(toy):
    sentences = rated.read_archive(toy[0] / rated.ARCHIVE)
    kept, _ = rated.split_sentences(sentences)
    assert not crossings(kept)
    side = {sentence.document: split for sentence, split in kept}
    assert side["nyt/31"] == side["nyt/4"]  # they share a sentence
    assert set(side.values()) == set(rated.SHARES)


def test_a_document_keeps_its_split_whatever_else_is_there(toy):
    sentences = rated.read_archive(toy[0] / rated.ARCHIVE)
    alone = dict(rated.split_sentences([s for s in sentences if s.domain == "amazon"])[0])
    for sentence, split in rated.split_sentences(sentences)[0]:
        assert alone.get(sentence, split) == split


def test_the_retrieval_set_holds_articles_of_two_sentences_or_more(toy):
    table = retrieval_set(*toy)
    assert sorted(table.columns) == ["document", "text"]
    assert len(table) == 90
    assert "nyt/31" not in table["document"]
    assert table["document"] == sorted(table["document"])


def test_a_damaged_archive_is_named_by_line(tmp_path):
    write_archive(tmp_path, tweets=["1\t1.0\tgood", "2\t9\tout of range"])
    with pytest.raises(ValueError, match=r"tweets_GroundTruth.txt, line 2: not id, rating, text"):
        rated.read_archive(tmp_path / rated.ARCHIVE)
    with pytest.raises(FileNotFoundError, match=r"fetch\('rated-sentences'\)"):
        prepare_sentences(tmp_path / "elsewhere", tmp_path / "tfds", ["movie"])


def test_preparing_and_reading_need_no_tensorflow(toy, tmp_path):
    code = f"""
import sys
from sftjax.data import prepare_sentences, read
builder = prepare_sentences({str(toy[0])!r}, {str(tmp_path)!r}, ["amazon"])["amazon"]
assert len(read(builder, "train")) > 0
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.assets
def test_the_real_archive(tmp_path):
    sentences = rated.read_archive(fetch("rated-sentences", progress=False) / rated.ARCHIVE)
    assert len(sentences) == 23_703
    assert any("Almodóvar" in sentence.text for sentence in sentences)
    assert not any("â€" in sentence.text or "&amp;" in sentence.text for sentence in sentences)
    kept, repeated = rated.split_sentences(sentences)
    assert repeated == {"movie": 2, "amazon": 20, "tweets": 156, "nyt": 77}
    assert not crossings(kept)
    polar = [(s, split) for s, split in kept if s.domain == "movie" and s.label >= 0]
    sizes = {name: sum(split == name for _, split in polar) for name in rated.SHARES}
    assert sizes == {"train": 7108, "validation": 957, "test": 2005}
