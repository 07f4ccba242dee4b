"""Pictures with any number of labels: learned, measured, judged and predicted on a tiny model."""

import csv
import re

import numpy as np
import pytest

from sftjax.evaluate import sigmoid, write_predictions
from sftjax.hub import load
from sftjax.recipes.diagnose import diagnose
from sftjax.recipes.diagnose_job import Diagnose
from sftjax.recipes.diagnose_labels import DiagnosedLabels
from sftjax.recipes.images import Tuning, images
from sftjax.recipes.images_job import PictureColumns, TuneImages
from sftjax.recipes.judging import load_judge, save_label_judge
from sftjax.recipes.label_judge import LabelJudge, fit_label_judge
from sftjax.recipes.predict import predict_rows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.training import Training

SEVERAL = PictureColumns(group="patient", task="multi-label")
LEARN = Training(
    per_device_train_batch_size=8, learning_rate=5e-3, max_steps=60, eval_steps=30, train=("all",),
    dose=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Noise with a bright top (a), a bright left (b), both or none, of 24 patients."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("findings")
    rng = np.random.default_rng(0)
    lines = ["path,label,patient"]
    for patient in range(24):
        for number, label in enumerate(["a", "b", "a|b", ""]):
            pixels = rng.normal(70, 30, (18, 18, 3))
            pixels[:9] += 90 * ("a" in label)
            pixels[:, :9] += 90 * ("b" in label)
            file = f"{patient}-{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
            lines.append(f"{file},{label},p{patient}")
    (folder / "findings.csv").write_text("\n".join(lines) + "\n")
    return folder / "findings.csv"


def test_labels_are_learned_and_every_one_is_reported(tiny_resnet, findings, tmp_path):
    job = TuneImages(
        model=str(tiny_resnet), data=str(findings), output_dir=tmp_path / "run", pictures=SEVERAL,
        training=LEARN, imbalance="class-balanced", leaks="tell",
    )  # fmt: skip
    done = images(job, lambda text: None)
    assert isinstance(done, Tuning)
    assert done.metrics["eval_auroc"].value > 0.9
    assert done.metrics["eval_auprc"].low <= done.metrics["eval_auprc"].value
    report = (tmp_path / "run" / "report.md").read_text()
    assert re.search(r"\n\| a +\|", report)
    assert (tmp_path / "run" / "plots" / "roc.png").is_file()
    model, *_ = load(tmp_path / "run" / "model")
    assert model.head.problem_type == "multi_label_classification"


def test_a_diagnosis_of_labels_is_judged_and_predicted(tiny_resnet, findings, tmp_path):
    job = Diagnose(
        model=str(tiny_resnet), data=str(findings), output_dir=tmp_path / "run", pictures=SEVERAL,
        training=LEARN, at_least=0.9, leaks="tell",
    )  # fmt: skip
    said = []
    done = diagnose(job, said.append)
    assert isinstance(done, DiagnosedLabels)
    assert done.metrics["auroc"].value > 0.9
    assert [line["label"] for line in done.labels] == ["a", "b"]
    assert any("labels are learned unweighted" in text for text in said)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    assert {"label_a", "probability_a", "flagged_b", "group"} <= set(first)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "not a medical device" in card
    out = tmp_path / "p.csv"
    logits = predict_rows(
        Predict(str(tmp_path / "run" / "model"), data=str(findings), output=out), lambda text: None
    )
    p = done.judge.probabilities(logits)
    with out.open() as file:
        lines = list(csv.DictReader(file))
    np.testing.assert_allclose([float(line["probability_a"]) for line in lines], p[:, 0], atol=1e-5)
    flags = done.judge.chosen(p)[:, 1]
    assert [line["prediction_b"] == "1" for line in lines] == flags.tolist()


def test_a_judge_of_labels_is_calibrated_and_kept(tmp_path):
    rng = np.random.default_rng(0)
    truth = (rng.random((400, 2)) < 0.5).astype(int)
    right = rng.normal(0, 1, (400, 2)) + np.where(truth, 1, -1)  # log-odds are 2 z
    judge, said = fit_label_judge(("a", "b"), 6 * right, truth, wanted=("a", "b"), at_least=0.9)
    assert "Temperature" in said[0]
    np.testing.assert_allclose(judge.scale, 1 / 3, rtol=0.2)
    flags = judge.flags(judge.probabilities(6 * right))
    assert flags["a"][truth[:, 0] == 1].mean() >= 0.9
    vector, _ = fit_label_judge(("a", "b"), 6 * right + 3, truth, calibrate="vector", wanted=())
    # 400 rows leave a label's own shift uncertain by a third of a unit of log-odds.
    np.testing.assert_allclose(
        vector.probabilities(6 * right + 3), judge.probabilities(6 * right), atol=0.12
    )
    save_label_judge(tmp_path, judge)
    back = load_judge(tmp_path)
    assert isinstance(back, LabelJudge)
    np.testing.assert_array_equal(back.probabilities(right), judge.probabilities(right))
    perfect, said = fit_label_judge(("a",), 9.0 * (2 * truth[:, :1] - 1), truth[:, :1], wanted=())
    assert "no error to calibrate by" in said[0]
    assert perfect.scale.tolist() == [1.0]


def test_what_is_of_one_class_a_picture_is_refused(tiny_resnet, findings, tmp_path):
    def run(**more):
        images(
            TuneImages(model=str(tiny_resnet), data=str(findings), output_dir=tmp_path / "never",
                       pictures=SEVERAL, training=LEARN, **more),
            lambda text: None,
        )  # fmt: skip

    with pytest.raises(ValueError, match="--rows-per-class draws pictures of one class"):
        run(rows_per_class=2)
    with pytest.raises(ValueError, match="--label-smoothing-factor"):
        run(label_smoothing_factor=0.1)


def test_given_labels_are_written(tmp_path):
    z = np.array([[1.0, -1.0]])
    path = write_predictions(
        tmp_path / "p.csv", [1], z, None, ("a", "b"), problem_type="multi_label_classification",
        given=[[0, 1]],
    )  # fmt: skip
    line = next(csv.DictReader(path.read_text("utf8").splitlines()))
    assert (line["prediction_a"], line["prediction_b"]) == ("0", "1")
    assert abs(float(line["probability_a"]) - sigmoid(z)[0, 0]) < 1e-5
