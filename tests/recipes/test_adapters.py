"""`--adapter` in the recipes: every word runs, its folder predicts, a kill changes nothing."""

import contextlib
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from sftjax.cli import main
from sftjax.core import flatten
from sftjax.hub import load, load_adapter
from sftjax.models import Head
from sftjax.recipes import watching
from sftjax.recipes.choosing import chosen_of
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.compare import Compare, compare
from sftjax.recipes.finetune import finetune
from sftjax.recipes.predict import Predict, predict_text
from sftjax.recipes.prepare import prepare
from sftjax.recipes.streams import shuffled
from sftjax.recipes.text_rows import Columns
from sftjax.recipes.training import Training
from sftjax.recipes.worn import wear
from sftjax.train import Interrupted

SHORT = Training(
    max_steps=4, per_device_train_batch_size=1, eval_steps=4, learning_rate=3e-3, logging_steps=2
)
KINDS = {
    "dora": "dora:r=2",
    "olora": "olora:r=2,targets=query",
    "houlsby": "houlsby:r=4",
    "prompt": "prompt:tokens=3",
    "prefix": "prefix:tokens=3",
}
PEFTS = ("lora", "rslora", "dora", "pissa", "olora", "ia3")


def done(model, data, folder, tell=lambda text: None, keep_prefix=False, sweep="", **options):
    job = Classify(
        str(model), str(data), folder, columns=Columns(max_length=16), eval_data=str(data),
        training=dataclasses.replace(SHORT, **options), per_device_eval_batch_size=8,
        keep_prefix=keep_prefix, sweep=sweep,
    )  # fmt: skip
    return classify(job, tell)


@pytest.fixture(scope="module")
def few(tmp_path_factory, reviews):
    """The first rows of the reviews."""
    path = tmp_path_factory.mktemp("few") / "reviews.csv"
    path.write_text("\n".join(reviews.read_text().splitlines()[:33]) + "\n")
    return path


@pytest.fixture(scope="module")
def learned(tiny_model, reviews, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    said = []
    options = {"max_steps": 100, "eval_steps": 50, "learning_rate": 1e-2, "dose": 0.1}
    found = done(
        tiny_model, reviews, folder, said.append, adapter=("lora:r=4,targets=query|value",),
        **options,
    )  # fmt: skip
    return folder, found, "\n".join(said)


def test_a_lora_learns_and_says_what_it_is_and_costs(learned, tiny_model):
    folder, found, said = learned
    assert found.metrics["eval_accuracy"].value > 0.9
    assert "side-branch" in said
    assert "trainable params" in said
    report = (folder / "report.md").read_text()
    assert "## The adapter" in report
    assert "lora     r=4 alpha=4" in report
    assert "PEFT's layout" in report
    facts = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == str(tiny_model)
    assert facts["modules_to_save"] == ["classifier"]
    assert found.retention.whole.distance > 0


def test_the_folder_merged_and_beside_say_the_same(learned, tiny_model):
    folder, found, _ = learned
    text = ("the film was great", "the book was awful")
    merged = predict_text(Predict(str(folder / "model"), text=text), lambda text: None)
    beside = predict_text(Predict(str(folder / "adapter"), text=text), lambda text: None)
    np.testing.assert_allclose(beside, merged, atol=1e-5)
    head = Head("sequence", ("neg", "pos"), "single_label_classification")
    base = load(tiny_model, head=head)
    there = load_adapter(folder / "adapter", base.model, base.params, report=base.report)
    for path, leaf in flatten(there.params["adapter"]).items():
        np.testing.assert_array_equal(leaf, flatten(found.tuned.params["adapter"])[path])


def test_the_base_stays_to_the_byte(learned, tiny_model):
    _, found, _ = learned
    before = flatten(load(tiny_model, head=Head("sequence", ("neg", "pos"))).params)
    for path, leaf in flatten(found.tuned.params["base"]).items():
        if not path.startswith("classifier"):
            assert np.asarray(leaf).tobytes() == np.asarray(before[path]).tobytes(), path


@pytest.mark.parametrize("name", ["dora", "olora", "houlsby", "prompt", "prefix"])
def test_every_word_runs_and_its_folder_predicts(name, tiny_model, few, tmp_path):
    said = []
    found = done(tiny_model, few, tmp_path / "run", said.append, adapter=(KINDS[name],))
    folder = tmp_path / "run"
    assert np.isfinite(found.metrics["eval_loss"])
    moved = flatten(found.tuned.fit.state.trainable)
    assert all(path.startswith(("adapter/", "base/classifier/")) for path in moved)
    held = any(row.anchored for row in found.tuned.description.rows)
    assert held == (name not in ("prompt", "prefix"))
    assert any(text.startswith("no anchor: ") for text in said) == (not held)
    assert (folder / "adapter" / "adapter_config.json").exists() == (name in PEFTS)
    beside = predicted(folder / "adapter", few, tmp_path)
    if name in (*PEFTS,):
        np.testing.assert_allclose(predicted(folder / "model", few, tmp_path), beside, atol=1e-4)
    else:
        assert not (folder / "model").exists()
        assert "which PEFT does not read" in (folder / "report.md").read_text()
    again = [line.split(",")[3] for line in (folder / "predictions.csv").read_text().split()[1:]]
    probability = np.exp(beside - beside.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    np.testing.assert_allclose(probability[:, 0], np.array(again, float), atol=2e-4)


def predicted(folder, data, tmp_path):
    out = tmp_path / "out.csv"
    return predict_text(Predict(str(folder), data=str(data), output=out), lambda text: None)


@pytest.mark.parametrize(("how", "word"), [("nf4", "pissa:r=2")])
def test_a_quantized_base(how, word, tiny_model, few, tmp_path):
    said = []
    found = done(
        tiny_model, few, tmp_path / "run", said.append, adapter=(word,), quantize=how, bf16=True
    )
    assert np.isfinite(found.metrics["eval_loss"])
    assert re.search(rf"{how.replace('-', ' ')} .*bits each", "\n".join(said))
    assert "bits each" in (tmp_path / "run" / "report.md").read_text()
    assert "dequantized from" in (tmp_path / "run" / "report.md").read_text()
    assert load(tmp_path / "run" / "model").report.new == ()


def test_stopped_in_the_middle_resumes_to_the_same_bytes(tiny_model, few, tmp_path, monkeypatch):
    """In one process; `test_classify` kills real ones."""

    def asked(step):
        return step == 3

    words = {"adapter": ("lora:r=2,dropout=0.1",), "quantize": "int8", "logging_steps": 2}
    whole = done(tiny_model, few, tmp_path / "whole", **words)
    with monkeypatch.context() as patch:
        patch.setattr(watching, "stop_on_signals", lambda: contextlib.nullcontext(asked))
        with pytest.raises(Interrupted):
            done(tiny_model, few, tmp_path / "cut", **words)
    again = done(tiny_model, few, tmp_path / "cut", **words)
    assert again.metrics == whole.metrics
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_biases_and_norms_train_beside_and_are_saved(tiny_model, few, tmp_path):
    for train, own in ((("norm", "new"), "LayerNorm/scale"), (("bias", "new"), "dense/bias")):
        folder = tmp_path / train[0]
        found = done(tiny_model, few, folder, adapter=("lora:r=2",), train=train)
        moved = flatten(found.tuned.fit.state.trainable)
        assert any(path.startswith("base/") and path.endswith(own) for path in moved)
        # A module with an adapter whose bias moves is more than PEFT's layout can say.
        assert (folder / "adapter" / "adapter.json").exists() == (train[0] == "bias")
        np.testing.assert_allclose(
            predicted(folder / "adapter", few, tmp_path),
            predicted(folder / "model", few, tmp_path),
            atol=1e-4,
        )


def test_lora_plus_moves_b_at_its_own_rate(ready):
    training = Training(adapter=("lora:r=2",), lora_plus=16.0, layer_decay=0.5)
    worn = wear(training.adapter, ready.params, ready.new)
    rates = flatten(chosen_of(worn.params, worn.new, training).rate)
    a = "adapter/bert/encoder/layer/0/attention/self/query/lora_a"
    assert rates[a.replace("lora_a", "lora_b")] == 16 * rates[a]
    assert rates[a.replace("layer/0", "layer/1")] == 2 * rates[a]
    assert rates["base/classifier/kernel"] == 1.0
    own = Training(adapter=("lora:r=2",), train=("adapter=0.5", "new"))
    rates = flatten(chosen_of(worn.params, worn.new, own).rate)
    assert (rates[a], rates["base/classifier/kernel"]) == (0.5, 1.0)


def test_a_kept_prefix_is_the_same_run(tiny_model, few, tmp_path, monkeypatch):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path / "cache"))
    word = {"adapter": ("lora:r=2,layers=1",), "quantize": "nf4"}
    plain = done(tiny_model, few, tmp_path / "a", **word)
    said = []
    kept = done(tiny_model, few, tmp_path / "b", said.append, keep_prefix=True, **word)
    assert any("computed once" in text for text in said)
    # Only the last block wears adapters: what lies below it is the same for all rows, and a step
    # above it that of the whole model.
    for path, leaf in flatten(kept.tuned.fit.state.trainable).items():
        np.testing.assert_allclose(
            flatten(plain.tuned.fit.state.trainable)[path], leaf, atol=2e-4, err_msg=path
        )
    with pytest.raises(ValueError, match="no lower block"):
        done(tiny_model, few, tmp_path / "c", keep_prefix=True, adapter=("lora:r=2",))


ANCHORS = ["l2-sp:2", "ewc", "recadam", "difference", "mixout", "features", "wise-ft:2", "tpgm",
           "spd", "r3f", "sam", "child-d", "lisa"]  # fmt: skip


@pytest.fixture(scope="module")
def ready(tiny_model, few, tmp_path_factory):
    """A job, read and tokenised."""
    job = Classify(
        str(tiny_model), str(few), tmp_path_factory.mktemp("never"), eval_data=str(few),
        columns=Columns(max_length=16), training=dataclasses.replace(SHORT, anchor="tpgm"),
    )  # fmt: skip
    return prepare(job, lambda text: None)


def tuned(ready, *words, **options):
    """Fine-tune without the folder that a recipe leaves; returns the plain weights too."""
    training = dataclasses.replace(SHORT, adapter=words, **options)
    worn = wear(words, ready.params, ready.new)
    held_out = shuffled(ready.held_out, 8, 0)
    found = finetune(
        worn.params, worn.new,
        worn.parts(ready.parts(held_out=held_out)),
        shuffled(ready.train, 8, 0), training, held=worn.held,
    )  # fmt: skip
    weights = flatten(worn.weights(found.params))
    start = flatten(worn.weights(worn.params))
    way = sum(float(((weights[p] - start[p]) ** 2).sum()) for p in weights if p not in ready.new)
    return found, way**0.5


@pytest.fixture(scope="module")
def free(ready):
    return tuned(ready, "lora:r=2", anchor="none")


@pytest.mark.parametrize("anchor", ANCHORS)
def test_anchors_go_with_an_adapter(anchor, ready, free):
    found, way = tuned(ready, "lora:r=2", anchor=anchor)
    assert way > 0
    now, other = flatten(found.params), flatten(free[0].params)
    assert any(not np.array_equal(now[path], other[path]) for path in now)
    if anchor.endswith(":2"):
        assert way < free[1]
    if anchor == "wise-ft:2":  # of LoRA the change of the weights is scaled, to the digit
        assert way / free[1] == pytest.approx(found.strength, rel=1e-3)


def test_a_coupled_pull_is_of_the_product(ready):
    """Of PiSSA too, whose product starts elsewhere; biases beside it are pulled as ever."""
    for word, train in ((("lora:r=2",), ()), (("pissa:r=2",), ("bias", "new"))):
        options = {"train": train, "anchor": "l2-sp", "coupled": True, "strength": 100.0}
        found, _ = tuned(ready, *word, **options)
        history = [entry for entry in found.fit.history if "change_penalty" in entry]
        assert history, "the penalty is among the metrics"
        assert bool(sum(row.anchored for row in found.description.rows)) == bool(train)
    assert history[-1]["change_penalty"] >= 0


def test_logits_are_held_to_the_base_beside_a_trained_head(learned, few, tmp_path):
    found = done(
        learned[0] / "model", few, tmp_path / "run", adapter=("prefix:tokens=2",), anchor="logits:1"
    )
    assert np.isfinite(found.metrics["eval_loss"])


REFUSED = {
    "name": ({"adapter": ("lara",)}, "adapter 'lara' is unknown"),
    "rank": ({"adapter": ("lora:r=100",)}, "rank r=100 is larger than a dimension"),
    "target": ({"adapter": ("lora:targets=querry",)}, "names no module; nearest.* query"),
    "not linear": ({"adapter": ("lora:targets=LayerNorm",)}, "name the linear modules"),
    "collision": ({"adapter": ("lora:r=2", "ia3")}, "would get two adapters, lora and ia3"),
    "trained too": ({"adapter": ("lora:r=2",), "train": ("all",)}, "has an adapter and stays"),
    "codes": (
        {"adapter": ("lora:r=2,layers=0",), "train": ("last:1",), "quantize": "nf4"},
        "keeps in few bits",
    ),
    "head left out": ({"adapter": ("lora:r=2",), "train": ("bias",)}, "add the rule 'new'"),
    "no adapter": ({"quantize": "nf4"}, "train an adapter beside them"),
    "quantize": ({"adapter": ("lora:r=2",), "quantize": "nf3"}, "it is one of nf4"),
    "phases": ({"adapter": ("lora:r=2",), "phases": ("lp", "ft")}, "leave one of the two out"),
    "ema": ({"adapter": ("lora:r=2",), "anchor": "ema"}, "product of averaged factors"),
    "prompt held": ({"adapter": ("prompt",), "anchor": "l2-sp"}, "no pretrained weight moves"),
    "prompt wise": ({"adapter": ("prefix",), "anchor": "wise-ft"}, "no leaf that moves has one"),
    "prompt r3f": ({"adapter": ("prompt:tokens=2",), "anchor": "r3f"}, "a prompt puts others"),
    "plus without B": ({"adapter": ("ia3",), "lora_plus": 16.0}, "has none"),
    "plus alone": ({"lora_plus": 16.0}, "give an adapter"),
    "coupled dora": (
        {"adapter": ("dora:r=2",), "anchor": "l2-sp", "coupled": True, "strength": 0.1},
        "no closed form",
    ),
    "new head": ({"adapter": ("lora:r=2",), "anchor": "logits"}, "this head is new"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_before_compilation(what, tiny_model, few, tmp_path):
    options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        done(tiny_model, few, tmp_path / "run", **options)


def test_an_adapter_of_another_base_is_refused(learned, tiny_model, few, tmp_path, capsys):
    done(tiny_model, few, tmp_path / "own", adapter=("pfeiffer:r=2",))
    for folder in (learned[0] / "adapter", tmp_path / "own" / "adapter"):
        code = main(["predict", str(folder), "--base", str(learned[0] / "model"), "--text", "a"])
        assert code == 2
        assert "fits its own base alone" in capsys.readouterr().err
        code = main(["predict", str(folder), "--base", "./nowhere", "--text", "a"])
        assert code == 2
        assert "--base" in capsys.readouterr().err


def test_a_sweep_is_a_bank_of_adapters(tiny_model, few, tmp_path):
    found = done(
        tiny_model, few, tmp_path / "run", sweep="seeds=2,dose=0|2",
        adapter=("lora:r=2,layers=1",), anchor="l2-sp", quantize="int8",
    )  # fmt: skip
    assert "computed once for all runs" in (tmp_path / "run" / "report.md").read_text()
    assert {row["seed"] for row in found.rows} == {0, 1}
    assert found.rows[0]["moved"] != found.rows[2]["moved"]
    twin = done(
        tiny_model, few, tmp_path / "twin", adapter=("lora:r=2,layers=1",), anchor="l2-sp:2",
        quantize="int8", seed=0,
    )  # fmt: skip
    run = next(row for row in found.rows if row["seed"] == 0 and row["dose"] == 2)
    assert run["eval_loss"] == pytest.approx(twin.metrics["eval_loss"], abs=1e-4)
    assert run["moved"] == pytest.approx(twin.retention.whole.distance, rel=1e-2)
    with pytest.raises(ValueError, match="compare strengths"):
        done(
            tiny_model, few, tmp_path / "no", sweep="seeds=2", adapter=("lora:r=2",),
            anchor="l2-sp", coupled=True, strength=0.1,
        )  # fmt: skip


def test_compare_runs_adapters_by_words(tiny_model, reviews, tmp_path):
    methods = (
        "none",
        "none+train=bias|new",
        "none+adapter=lora:r=2,targets=query|value+lr=3+plus=4",
        "l2-sp:1+adapter=pissa:r=2+adapter=prefix:tokens=2,layers=1",
        "none+adapter=lora:r=2+merge=wise:0.5",
    )
    # A PiSSA of queries alone: the prefix sits where its keys are.
    methods = tuple(word.replace("pissa:r=2", "pissa:r=2,targets=query") for word in methods)
    job = Compare(
        str(tiny_model), str(reviews), tmp_path / "c", methods=methods, seeds=1, rows=24,
        training=dataclasses.replace(SHORT, train=("last:1",)), columns=Columns(max_length=16),
    )  # fmt: skip
    rows = {row["method"]: row for row in compare(job, tell=lambda text: None)}
    assert rows["none"]["trained"] > rows[methods[2]]["trained"] > 0
    assert all(np.isfinite(row["train_loss"]) for row in rows.values())
    assert all(row["cka"] < 1 for row in rows.values())
    for word, message in (
        ("none+adapter=", "is not lr=FACTOR"),
        ("none+adapter=lora:x=1", "cannot read 'x=1'"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(dataclasses.replace(job, methods=(word,)), tell=lambda text: None)


def test_pulling_both_factors_of_a_pissa_is_the_pull_of_its_product():
    """To first order in how far they moved: the law that the dose of a PiSSA rests on."""
    from sftjax.adapters import change_penalty, held_leaves, lora, plan_adapter, with_adapter

    params = {"q": {"kernel": jax.random.normal(jax.random.key(0), (32, 24)) / 6}}
    plan = plan_adapter(params, lora(r=4, init_lora_weights="pissa"))
    start = with_adapter(params, plan, jax.random.key(1))
    paths = held_leaves(start, plan)
    assert paths == ["adapter/q/lora_a", "adapter/q/lora_b"]

    def apart(size, share):
        keys = iter(jax.random.split(jax.random.key(2), 2))
        moved = jax.tree.map(
            lambda leaf: leaf + share * size * jax.random.normal(next(keys), leaf.shape),
            start["adapter"],
        )
        return float(change_penalty({**start, "adapter": moved}, plan)) ** 0.5

    for size, error in ((1e-3, 2e-3), (1e-2, 2e-2)):
        assert apart(size, 0.37) / apart(size, 1.0) == pytest.approx(0.37, rel=error)
