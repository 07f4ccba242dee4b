"""Weights of a folder: cut into shards or not, the same tensors come back."""

import json

import flax.serialization
import numpy as np
import pytest

from sftjax.hub.weights import INDEX, open_weights, write_weights

TENSORS = {f"w{index}": np.full((10,), index, np.float32) for index in range(5)}  # 40 bytes each


@pytest.mark.parametrize(
    ("size", "files"), [(10**9, 1), (200, 1), (199, 2), (80, 3), (40, 5), (1, 5)]
)
def test_shards_hold_the_same_tensors_below_the_limit(tmp_path, size, files):
    written = write_weights(tmp_path, TENSORS, size)
    weights = open_weights(tmp_path)
    assert len(written) == files
    assert (tmp_path / INDEX).exists() == (files > 1)
    assert weights.tensors.keys() == TENSORS.keys()
    assert all(np.array_equal(weights.tensors[name], TENSORS[name]) for name in TENSORS)
    assert set(weights.digests()) == {path.name for path in written}


def test_the_index_is_the_hubs(tmp_path):
    write_weights(tmp_path, TENSORS, 80)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"]["w4"] == "model-00003-of-00003.safetensors"


@pytest.mark.parametrize(("before", "after"), [(1, 10**9), (10**9, 1), (1, 80)])
def test_the_other_layout_of_an_earlier_save_does_not_stay(tmp_path, before, after):
    (tmp_path / "notes.safetensors").write_bytes(b"mine")
    write_weights(tmp_path, {"old": np.zeros(9), "older": np.zeros(9)}, before)
    write_weights(tmp_path, TENSORS, after)
    assert open_weights(tmp_path).tensors.keys() == TENSORS.keys()
    assert (tmp_path / "notes.safetensors").read_bytes() == b"mine"


def test_a_missing_shard_is_named(tmp_path):
    write_weights(tmp_path, TENSORS, 80)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards.*model-00002-of-00003.*Fetch"):
        open_weights(tmp_path)


def test_shards_of_another_index_are_refused(tmp_path):
    write_weights(tmp_path, TENSORS, 80)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["w0"] = "model-00003-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"do not belong together.*'w0'.*'w0'.*together"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"w": "../../etc/passwd"}}',
        '{"weight_map": {"w": "../x.safetensors"}}',
        '{"weight_map": {"w": 3}}',
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json.*Copy"):
        open_weights(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no weights.*found nothing"):
        open_weights(tmp_path)


def test_several_foreign_files_are_not_chosen_from(tmp_path):
    (tmp_path / "one.pth").write_bytes(b"pickle")
    (tmp_path / "two.npz").write_bytes(b"zip")
    with pytest.raises(FileNotFoundError, match=r"several files of weights \(one.pth, two.npz\)"):
        open_weights(tmp_path)


def test_an_old_flax_checkpoint(tmp_path):
    data = flax.serialization.to_bytes({"a": {"b": TENSORS["w1"]}})
    (tmp_path / "flax_model.msgpack").write_bytes(data)
    weights = open_weights(tmp_path)
    assert weights.format == "msgpack"
    assert np.array_equal(weights.tensors["a/b"], TENSORS["w1"])
    for damaged in (data[:-3], b"", b"\xc1"):
        (tmp_path / "flax_model.msgpack").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole Flax checkpoint"):
            open_weights(tmp_path)
