"""Where a model comes from: a folder that is here, or a name that the Hub is asked for."""

import shutil

import flax.serialization
import huggingface_hub
import jax
import numpy as np
import pytest

from sftjax.hub import load


@pytest.mark.parametrize("name", ["owner/model", "bert-base-uncased", "not a name!"])
def test_a_hub_name_without_network(name):
    with pytest.raises(FileNotFoundError, match=r"no folder .*copy the model's folder"):
        load(name)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*Check the path"):
        load(name)


@pytest.mark.parametrize("layout", ["safetensors", "msgpack"])
def test_only_what_is_needed_is_fetched(tmp_path, checkpoint, monkeypatch, layout):
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    checkpoint(remote)
    (remote / "pytorch_model.bin").write_bytes(b"pickle")
    params = jax.tree.map(np.asarray, load(remote).params)
    (remote / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(params))
    if layout == "msgpack":
        (remote / "model.safetensors").unlink()

    def download(name, allow_patterns):
        assert name == "owner/model"
        cache.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in remote.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load("owner/model")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded.params, params)))
    assert loaded.report.source == "owner/model"
    weights = {"safetensors": "model.safetensors", "msgpack": "flax_model.msgpack"}[layout]
    assert {path.name for path in cache.iterdir()} == {"config.json", "vocab.txt", weights}
