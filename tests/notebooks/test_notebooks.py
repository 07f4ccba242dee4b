"""Every notebook runs top to bottom, and what is shipped of each is what a run left."""

import importlib.util
import os
import pathlib
import re

import jax
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"

ASSETS = {
    "01_sentiment": ("minilm-l6", "rated-sentences"),
    "02_many_doses": ("minilm-l6", "rated-sentences"),
    "03_images_and_calibration": ("efficientnet-lite0", "mni152-patches"),
    "04_anomaly_maps": ("dinov2-small", "mni152-slices", "brain-mris-17"),
    "05_findings_to_impression": ("flan-t5-titles",),
    "06_chat": ("smollm2-135m-instruct", "construction-faq"),
    "07_own_model": ("minilm-l6", "rated-sentences"),
    "08_torch_and_back": ("minilm-l6", "efficientnet-lite0"),
}
"""Notebook -> the assets that it fetches."""


def _tool():
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return all that the cells of a notebook print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") for output in outputs)


def numbers(pattern: str, text: str) -> list[float]:
    """Return the number of every match."""
    found = [float(value) for value in re.findall(pattern, text)]
    assert found, f"{pattern!r} is nowhere in\n{text}"
    return found


@pytest.fixture
def kernel(monkeypatch):
    """The environment of a notebook's kernel: one device, and the tests' compiled programs."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "force_host_platform_device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(kept))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def test_there_is_a_notebook_for_each_and_no_other():
    assert [path.stem for path in tool.paths_of([])] == sorted(ASSETS)
    with pytest.raises(ValueError, match="no notebook begins with '9'; there are"):
        tool.paths_of(["9"])


@pytest.mark.parametrize("name", ASSETS)
def test_what_is_shipped_was_run_in_order_and_shows_no_machine(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert tool.faults(notebook) == []
    assert any(cell.get("outputs") for cell in notebook.cells)
    raw = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    text = re.sub(r'"image/png": "[^"]*"', "", raw)
    assert not re.search(r"/(root|work|home|tmp|usr)/", text)
    first = notebook.cells[0].source
    for said in ("jupyter execute", "| time |", "| expect |", "SFTJAX_NOTEBOOK_SMALL"):
        assert said in first
    assert "google.colab" in notebook.cells[1].source


def _runs(name: str, asset_folder) -> str:
    for asset in ASSETS[name]:
        asset_folder(asset)
    notebook = tool.execute(FOLDER / f"{name}.ipynb", small=True, timeout=600)
    assert tool.faults(notebook) == []
    return printed(notebook)


@pytest.mark.assets
def test_sentiment(kernel, asset_folder):
    text = _runs("01_sentiment", asset_folder)
    assert 0.5 < numbers(r"(?m)^accuracy (\S+)", text)[0] < 0.85


@pytest.mark.assets
def test_many_doses(kernel, asset_folder):
    text = _runs("02_many_doses", asset_folder)
    distances = numbers(r"(?m)^ *\d\.\d+ +0 +\d\.\d+ +\d\.\d+ +(\d\.\d+)$", text)
    assert len(distances) == 3
    assert distances == sorted(distances, reverse=True)


@pytest.mark.assets
def test_images_and_calibration(kernel, asset_folder):
    pytest.importorskip("nibabel")
    text = _runs("03_images_and_calibration", asset_folder)
    assert 0.45 < numbers(r"(?m)^accuracy (\S+)", text)[0] <= 1
    before, after = numbers(r"ECE (\S+)", text)
    assert after < before
    assert 0.8 < numbers(r"promised 0.900, found (\S+)", text)[0] <= 1


@pytest.mark.assets
def test_anomaly_maps(kernel, asset_folder):
    pytest.importorskip("nibabel")
    text = _runs("04_anomaly_maps", asset_folder)
    assert numbers(r"AUROC (\S+)", text)[0] > 0.55


@pytest.mark.assets
def test_findings_to_impression(kernel, asset_folder):
    text = _runs("05_findings_to_impression", asset_folder)
    before, after = numbers(r"(\d+\.\d+) (?:before|after)", text)
    assert before - after > 0.3


@pytest.mark.assets
def test_chat(kernel, asset_folder):
    text = _runs("06_chat", asset_folder)
    before, after = numbers(r"(\d+\.\d+) (?:before|after)", text)
    assert before - after > 0.005


@pytest.mark.assets
def test_own_model(kernel, asset_folder):
    text = _runs("07_own_model", asset_folder)
    assert min(numbers(r"tweets, dose 0 +\S+ \[.*?\] +(\S+)", text)) > 0.6
    free, held = numbers(r"(?m)dose 0 .*? (\S+)$", text), numbers(r"(?m)dose 1 .*? (\S+)$", text)
    assert all(0.4 < h / f < 0.9 for f, h in zip(free, held, strict=True))


@pytest.mark.assets
def test_torch_and_back(kernel, asset_folder):
    text = _runs("08_torch_and_back", asset_folder)
    assert "as they were tuned: True" in text
    assert "you have been run" not in text
    if importlib.util.find_spec("torch") is not None:
        found = numbers(r"largest difference from torch's \w+: (\S+)", text)
        assert len(found) == 2
        assert max(found) < 1e-4
