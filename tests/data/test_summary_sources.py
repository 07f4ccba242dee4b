"""Data sets fetched by name: what is kept, how it is split, and what is said where it cannot be."""

import io
import json
import shutil
import tarfile

import pytest

from sftjax.data import asset_source, debian_synopses, read, splits
from sftjax.data.debian_synopses import Described, read_index, split_of, write_splits
from sftjax.data.radiology_reports import radiology_reports

LONG = "It is a thing that does what such things do in the way that they do it, for all to see {}."


def row(package, source, number):
    return Described(package, source, LONG.format(number), f"thing {number}")


def test_siblings_and_short_ones_are_left_out_and_sources_stay_together(tmp_path):
    rows = [row(f"p{n}", f"s{n // 4}", n) for n in range(400)]
    rows += [row("copy", "elsewhere", 7), Described("short", "s0", "Too short.", "short")]
    write_splits(tmp_path / "made", rows)
    facts = json.loads((tmp_path / "made" / "SOURCE.json").read_text())["counts"]
    assert facts["described"] == 402
    assert facts["left out: same first paragraph"] == 1
    assert facts["left out: not 20 to 250 words"] == 1
    found = {split: read(tmp_path / "made", split) for split in splits(tmp_path / "made")}
    assert sum(map(len, found.values())) == 400
    assert len(found["train"]) > 300
    for split, table in found.items():
        assert {split_of(source) for source in table["source"]} == {split}


def test_descriptions_are_read_with_their_lists_and_their_source():
    index = "Package: a\nVersion: 1\n\nPackage: b\nSource: a (2)\nDepends: x\n"
    text = (
        "Package: a\nDescription-en: one\n First\n line.\n .\n Then:\n  * x: y\n  * z\n\n"
        "Package: b\nDescription-en: two\n Of b.\n\n"
        "Package: gone\nDescription-en: three\n Not in the index.\n"
    )
    assert list(read_index(index, text)) == [
        Described("a", "a", "First line.\n\nThen:\n* x: y\n* z", "one"),
        Described("b", "a", "Of b.", "two"),
    ]


def test_where_there_is_no_apt_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"this machine has none\. Run it on Debian"):
        debian_synopses.debian_synopses(tmp_path)


def test_a_made_folder_is_read_without_apt(monkeypatch, tmp_path):
    write_splits(tmp_path / "debian-synopses-1", [row(f"p{n}", f"s{n}", n) for n in range(60)])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path))
    assert len(read("asset:debian-synopses:train")) > 40
    assert splits("asset:debian-synopses") == ("train", "validation", "test")
    assert splits("asset:debian-synopses:test") == ("test",)


def test_reports_without_both_parts_and_repeated_findings_are_left_out(tmp_path):
    def report(findings, impression):
        parts = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>' * bool(findings)
        parts += f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>' * bool(impression)
        return f"<eCitation><Abstract>{parts}</Abstract></eCitation>".encode()

    archive = tmp_path / "reports.tgz"
    with tarfile.open(archive, "w:gz") as content:
        contents = [report(f"The wall {n} is blue.", f"Wall {n}.") for n in range(30)]
        contents += [report("the wall 3 IS blue", "Again."), report("A door.", "")]
        for number, data in enumerate(contents):
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(data)
            content.addfile(member, io.BytesIO(data))
    found = radiology_reports(archive)
    assert found.counts["left out: same findings"] == 1
    assert found.counts["left out: no findings or no impression"] == 1
    assert sum(map(len, found.tables.values())) == 30
    again = radiology_reports(archive).tables["train"]
    assert again["findings"] == found.tables["train"]["findings"]


def test_names_and_splits_that_there_are_not(monkeypatch):
    with pytest.raises(ValueError, match="no asset:debian; those known are debian-synopses, rad"):
        read("asset:debian", "train")
    monkeypatch.setitem(asset_source.ASSET_TABLES, "debian-synopses", lambda split: split)
    with pytest.raises(ValueError, match="has the splits train, validation, test; name one"):
        read("asset:debian-synopses", "dev")
