"""Every way of holding on runs by its name, and says what is wrong with how it was asked for."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from sftjax.cli import main
from sftjax.core import Aux, Loss, flatten
from sftjax.recipes.classify import Classify, classify
from sftjax.recipes.compare import Compare, compare
from sftjax.recipes.contender import contender_of
from sftjax.recipes.keeping import Reference
from sftjax.recipes.methods import METHODS
from sftjax.recipes.phase_words import phases_of_words
from sftjax.recipes.streams import Stream
from sftjax.recipes.tpgm import projecting
from sftjax.recipes.training import Training

SHORT = Training(
    train=("last:1",), max_steps=6, per_device_train_batch_size=4, eval_steps=6, dose=1.0,
    learning_rate=1e-3,
)  # fmt: skip


def run(tiny_model, reviews, folder, **options):
    training = dataclasses.replace(SHORT, **options)
    job = Classify(str(tiny_model), str(reviews), folder, training=training)
    return classify(job, tell=lambda text: None)


@pytest.fixture(scope="module")
def free(tiny_model, reviews, tmp_path_factory):
    return run(tiny_model, reviews, tmp_path_factory.mktemp("free") / "run", anchor="none")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("none", "logits")])
def test_every_anchor_runs_and_keeps_frozen_bytes(name, tiny_model, reviews, tmp_path, free):
    train = ("last:2",) if name == "lisa" else SHORT.train  # it draws among blocks
    found = run(tiny_model, reviews, tmp_path / "run", anchor=name, train=train)
    assert np.isfinite(found.metrics["eval_loss"])
    now, other = flatten(found.tuned.params), flatten(free.tuned.params)
    moved = [path for path in now if not np.array_equal(now[path], other[path])]
    assert moved, "the method changed nothing"
    frozen = flatten(found.tuned.selection.trainable)
    assert all(frozen[path] for path in moved)
    assert bool(found.tuned.description.parts) == (name in ("child-f", "child-d", "lisa"))


@pytest.mark.parametrize("name", ["l2-sp", "wise-ft", "mixout", "recadam"])
def test_a_dose_shortens_the_way(name, tiny_model, reviews, tmp_path, free):
    held = run(tiny_model, reviews, tmp_path / "run", anchor=f"{name}:3")
    assert held.retention.whole.distance < free.retention.whole.distance


def test_a_dose_of_zero_is_no_anchor(tiny_model, reviews, tmp_path, free):
    same = run(tiny_model, reviews, tmp_path / "run", anchor="ewc:0")
    jax.tree.map(np.testing.assert_array_equal, same.tuned.params, free.tuned.params)


def test_the_difference_is_l2_sp(tiny_model, reviews, tmp_path):
    one = run(tiny_model, reviews, tmp_path / "a", anchor="l2-sp:1")
    other = run(tiny_model, reviews, tmp_path / "b", anchor="difference:1")
    for path, leaf in flatten(one.tuned.params).items():
        if not path.endswith("key/bias"):  # its gradient is 0, and Adam follows the rounding
            np.testing.assert_allclose(flatten(other.tuned.params)[path], leaf, atol=2e-5)


def test_logits_need_a_head_that_was_trained(tiny_model, reviews, tmp_path, free):
    with pytest.raises(ValueError, match="this head is new"):
        run(tiny_model, reviews, tmp_path / "a", anchor="logits")
    again = run(free.folder / "model", reviews, tmp_path / "b", anchor="logits:1")
    assert np.isfinite(again.metrics["eval_loss"])


def test_the_importance_weight_leads_from_l2_sp_to_ewc(tiny_model, reviews, tmp_path):
    plain = run(tiny_model, reviews, tmp_path / "a", anchor="l2-sp:3")
    none = run(tiny_model, reviews, tmp_path / "b", anchor="ewc:3", importance_weight=0.0)
    whole = run(tiny_model, reviews, tmp_path / "c", anchor="ewc:3")
    for path, leaf in flatten(plain.tuned.params).items():
        np.testing.assert_allclose(flatten(none.tuned.params)[path], leaf, atol=1e-6)
    same = [np.allclose(*pair, atol=1e-5) for pair in zip(
        jax.tree.leaves(plain.tuned.params), jax.tree.leaves(whole.tuned.params), strict=True
    )]  # fmt: skip
    assert not all(same)


def test_an_average_replaces_the_last_weights(tiny_model, reviews, tmp_path, free):
    last = run(tiny_model, reviews, tmp_path / "a", anchor="none", average="ema:0")
    for path, leaf in flatten(free.tuned.params).items():  # all of the weight on the last
        np.testing.assert_allclose(flatten(last.tuned.params)[path], leaf, atol=1e-6)
    slow = run(tiny_model, reviews, tmp_path / "b", anchor="none", average="ema:0.99")
    mean = run(tiny_model, reviews, tmp_path / "c", anchor="none", average="swa:0.4")
    whole = free.retention.whole.distance
    assert slow.retention.whole.distance < 0.1 * whole
    assert 0.5 * whole < mean.retention.whole.distance < whole
    held = run(tiny_model, reviews, tmp_path / "d", anchor="child-d", average="swa")
    assert 0 < held.retention.whole.distance < whole


def test_learned_radii_shorten_the_way_and_spare_the_head(tiny_model, reviews, tmp_path):
    found = run(tiny_model, reviews, tmp_path / "a", anchor="tpgm", max_steps=12)
    plain = run(tiny_model, reviews, tmp_path / "b", anchor="wise-ft:0", max_steps=12)
    assert 0 < found.retention.whole.distance <= plain.retention.whole.distance * 1.05
    again = run(tiny_model, reviews, tmp_path / "c", anchor="tpgm", phases=("lp", "ft"))
    assert np.isfinite(again.metrics["eval_loss"])


def test_radii_end_where_held_out_rows_are_best_and_spare_what_is_new():
    def objective(params, model_state, batch, key):
        return Loss(jax.numpy.sum((params["trunk"] - batch["y"]) ** 2), 1.0), Aux({})

    held_out = Stream(1, lambda step: {"y": np.full(8, 0.25, np.float32)})
    finish = projecting(objective, held_out, {"trunk", "head"})
    before = {"trunk": np.zeros(8, np.float32), "head": None, "frozen": np.ones(2, np.float32)}
    after = {"trunk": np.ones(8, np.float32), "head": np.ones(3), "frozen": before["frozen"]}
    found = finish(before, after)
    np.testing.assert_allclose(found["trunk"], 0.25, atol=0.01)
    np.testing.assert_array_equal(found["head"], after["head"])
    np.testing.assert_array_equal(found["frozen"], after["frozen"])


def test_phases_learn_the_head_first(tiny_model, reviews, tmp_path):
    folder = tmp_path / "run"
    found = run(tiny_model, reviews, folder, phases=("lp", "ft"), anchor="l2-sp")
    rates = {
        entry["step"]: entry["learning_rate"]
        for entry in found.tuned.fit.history
        if "learning_rate" in entry
    }
    assert rates, "the history says which rate each phase had"
    assert found.tuned.num_steps == 6
    assert (folder / "checkpoints" / "1-lp").exists()
    assert (folder / "model").exists()
    again = run(tiny_model, reviews, folder, phases=("lp", "ft"), anchor="l2-sp")
    jax.tree.map(np.testing.assert_array_equal, again.tuned.params, found.tuned.params)


def test_a_kept_prefix_is_the_same_run(tiny_model, reviews, tmp_path, monkeypatch, free):
    monkeypatch.setenv("SFTJAX_CACHE", str(tmp_path / "cache"))
    training = dataclasses.replace(SHORT, anchor="none")
    job = Classify(
        str(tiny_model), str(reviews), tmp_path / "run", training=training, keep_prefix=True
    )
    said = []
    found = classify(job, tell=said.append)
    assert any("computed once" in text for text in said)
    for path, leaf in flatten(found.tuned.params).items():
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(flatten(free.tuned.params)[path], leaf, atol=2e-5)


def test_retention_is_measured_by_default_and_on_named_data(tiny_model, reviews, tmp_path, free):
    facts = json.loads((free.folder / "metrics.json").read_text())
    assert any(row["measure"] == "linear CKA" for row in facts["retention"])
    assert "not measured" in str(free.retention)  # no labelled task was named, and it says so
    other = tmp_path / "texts.csv"
    lines = [f"the {word} was {mood},{word}" for word in ("film", "book", "song")
             for mood in ("good", "bad", "fine")]  # fmt: skip
    other.write_text("text,topic\n" + "\n".join(lines) + "\n")
    job = Classify(
        str(tiny_model), str(reviews), tmp_path / "run", training=SHORT,
        reference=Reference(str(other), "topic"),
    )  # fmt: skip
    found = classify(job, tell=lambda text: None)
    assert found.retention.tasks[0].rows == 9


@pytest.mark.parametrize(("options", "message"), [
    ({"anchor": "l3-sp"}, "anchor 'l3-sp' is unknown; there are: none, l2-sp"),
    ({"anchor": "spd:2"}, "'spd' takes no dose"),
    ({"anchor": "ewc:much"}, "write NAME:DOSE with a number"),
    ({"anchor": "ewc", "phases": ("lp", "ft")}, "'ewc' does not go through phases"),
    ({"phases": ("lp@0.7", "ft@0.6")}, "add up to 1.3"),
    ({"phases": ("gradual:x",)}, "write 'gradual:' and a number"),
    ({"phases": ("lp", "ft"), "max_steps": 1}, "do not go round"),
    ({"phases": ("nowhere",)}, "matches none"),
    ({"train": ("new",), "anchor": "l2-sp"}, "no leaf can be anchored"),
    ({"dose": 500.0}, "overshoot"),
    ({"layer_decay": 1.5}, "layer-wise decay lies in"),
    ({"anchor": "lisa"}, "fewer than two do"),
    ({"coupled": True}, "a coupled pull has no dose under Adam"),
    ({"anchor": "mixout", "strength": 0.1}, "--strength is the pull of l2-sp and ewc"),
    ({"anchor": "mixout", "coupled": True}, "--coupled is a way of l2-sp and ewc"),
    ({"strength": 1e6}, "overshoot|lower the strength"),
    ({"average": "swa:2"}, "write ema:DECAY, swa or swa:SHARE"),
    ({"average": "ema"}, "write ema:DECAY, swa or swa:SHARE"),
    ({"average": "swa", "phases": ("lp", "ft")}, "leave one of the two out"),
    ({"average": "swa", "anchor": "ema"}, "leave one of the two out"),
    ({"importance_weight": 0.5}, "is of ewc, and the anchor is 'l2-sp'"),
    ({"importance_weight": 1.5, "anchor": "ewc"}, "goes from 0"),
    ({"train": ("new",), "anchor": "tpgm"}, "projects pretrained leaves"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_compilation(
    options, message, tiny_model, reviews, tmp_path
):
    with pytest.raises(ValueError, match=message):
        run(tiny_model, reviews, tmp_path / "run", **options)


def test_a_prefix_is_refused_where_nothing_stands_still(tiny_model, reviews, tmp_path):
    for change, message in (({"train": ("all",)}, "no lower block"), ({"dropout": True}, "draws")):
        training = dataclasses.replace(SHORT, **change)
        job = Classify(
            str(tiny_model), str(reviews), tmp_path / "run", training=training, keep_prefix=True
        )
        with pytest.raises(ValueError, match=message):
            classify(job, tell=lambda text: None)
        tmp_path = tmp_path / "next"


def test_gradual_unfreezing_is_a_phase_a_block():
    found = phases_of_words(["lp@0.1", "gradual:3"], [("all", 1.0)], 100)
    assert [(name, steps) for name, _, steps in found] == [
        ("lp", 10), ("last-1", 30), ("last-2", 30), ("last-3", 30),
    ]  # fmt: skip


def test_compare_writes_a_table_and_goes_on_where_it_was(tiny_model, reviews, tmp_path, capsys):
    folder = tmp_path / "compared"
    words = ["compare", "--model", str(tiny_model), "--data", str(reviews), "--output-dir"]
    rest = ["--seeds", "2", "--rows", "40", "--train", "last:1", "--max-steps", "6",
            "--per-device-train-batch-size", "4", "--learning-rate", "1e-3"]  # fmt: skip
    code = main([*words, str(folder), "--methods", "none", "l2-sp:2", *rest])
    assert code == 0, capsys.readouterr().err
    rows = json.loads((folder / "metrics.json").read_text())["runs"]
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("none", 0), ("l2-sp:2", 0), ("none", 1), ("l2-sp:2", 1),
    ]  # fmt: skip
    moved = [row["moved"] for row in rows]
    assert moved[1] < moved[0]
    assert moved[3] < moved[2]
    assert "## Against `none`, paired by seed" in (folder / "report.md").read_text()
    assert (folder / "plots" / "pareto-evaluation.png").stat().st_size > 0
    capsys.readouterr()
    more = ["--methods", "none", "l2-sp:2", "wise-ft:1+lr=2", *rest]
    assert main([*words, str(folder), *more]) == 0
    assert "1/2 wise-ft:1+lr=2, seed 0" in capsys.readouterr().out


def test_compare_runs_averages_radii_and_merged_models_by_name(tiny_model, reviews, tmp_path):
    methods = ("none", "none+merge=add:0", "none+merge=wise:0.5", "none+merge=uniform+runs=2",
               "none+merge=greedy+runs=2", "none+average=swa", "tpgm")  # fmt: skip
    training = dataclasses.replace(SHORT, anchor="none")
    job = Compare(
        str(tiny_model), str(reviews), tmp_path / "c", methods=methods, seeds=1, rows=40,
        training=training, validation_fraction=0.25,
    )  # fmt: skip
    rows = {row["method"]: row for row in compare(job, tell=lambda text: None)}
    free = rows["none"]["moved"]
    assert rows["none+merge=add:0"]["moved"] == 0.0
    assert rows["none+merge=add:0"]["cka"] == pytest.approx(1.0)
    assert rows["none+merge=wise:0.5"]["moved"] == pytest.approx(free / 2, rel=1e-4)
    assert 0.3 * free < rows["none+merge=uniform+runs=2"]["moved"] < free
    assert 0 < rows["none+average=swa"]["moved"] < free
    assert all(np.isfinite(row["train_loss"]) for row in rows.values())


@pytest.mark.parametrize(("methods", "message"), [
    (("none", "none"), "'none' stands twice"),
    (("none+rate=2",), "is not lr=FACTOR"),
    (("none+lr=fast",), "is not lr=FACTOR"),
    (("nothing",), "is unknown"),
    (("none+runs=3",), "add merge=uniform"),
    (("none+merge=stew",), "is no way to merge"),
    (("none+merge=wise:0.5+runs=2",), "takes one model"),
])  # fmt: skip
def test_methods_that_cannot_be_read(methods, message, tiny_model, reviews, tmp_path):
    job = Compare(str(tiny_model), str(reviews), tmp_path / "c", methods=methods)
    with pytest.raises(ValueError, match=message):
        compare(job, tell=lambda text: None)


def test_a_method_without_a_dose_takes_the_shared_one():
    assert contender_of("l2-sp", Training(dose=3.0)).training.anchor == "l2-sp:3"
