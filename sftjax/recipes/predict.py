"""Predict with a saved model: texts or pictures, to the screen or a file.

sftjax predict runs/a/model --text "A quiet triumph."
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sftjax.data import Table, read
from sftjax.evaluate import predict, sigmoid, softmax, table, write_predictions
from sftjax.hub import load_tokenizer
from sftjax.recipes.adapter_folder import is_adapter, load_adapted
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.predict_pictures import predict_pictures, reads_pictures
from sftjax.recipes.progress import say
from sftjax.recipes.saved_detectors import has_detectors, predict_strange
from sftjax.recipes.text_models import load_encoder
from sftjax.recipes.text_rows import Columns, encode_rows


def predict_rows(job: Predict, tell: Callable[[str], None] = say) -> np.ndarray:
    """Predict texts or pictures, whichever the model reads; see `predict_text`."""
    if has_detectors(job.model):
        return predict_strange(job, tell)
    run = predict_pictures if reads_pictures(job.model) else predict_text
    return run(job, tell)


def predict_text(job: Predict, tell: Callable[[str], None] = say) -> np.ndarray:
    """Predict, and print or write what came out.

    Returns:
      (N, C) logits, or (N, 1) numbers of a regression.

    Raises:
      ValueError: if there is nothing to predict, or the model has no sequence head.
    """
    if bool(job.text) == (job.data is not None):
        raise ValueError(
            "give either --text with one or more texts after it, or --data, a file of texts"
        )
    rows = (
        Table({job.column: list(job.text)}, name="--text") if job.data is None else read(job.data)
    )
    if is_adapter(job.model):
        model, apply, params, report, _ = load_adapted(job.model, job.base)
    elif job.base is not None:
        raise ValueError(
            f"--base {job.base}: {job.model} is a whole model and no adapter; leave --base out"
        )
    else:
        model, params, report = load_encoder(job.model)
        apply = model.apply
    if model.head.kind != "sequence":
        raise ValueError(
            f"{job.model} has a {model.head.kind} head; predict needs one for whole texts, as "
            "`sftjax classify` with --task single-label, multi-label or regression saves it"
        )
    columns = Columns(text=job.column, pair=job.pair, max_length=model.max_length)
    encoded = encode_rows(rows, columns, load_tokenizer(report.folder), None)
    batches = encoded.batches(job.batch_size)
    steps = (batches.at(step) for step in range(batches.steps_per_epoch))
    run = jax.jit(lambda params, batch: apply(params, batch, None))
    logits = predict(run, params, steps, len(rows))
    names, problem = model.head.labels, model.head.problem_type
    texts = [str(text) for text in rows[job.column]]
    if job.output is None:
        tell(table(_lines(texts, logits, names, problem), ["text", "prediction", "probability"]))
    else:
        numbers = np.asarray(rows.rows) if len(rows.rows) else np.arange(1, len(rows) + 1)
        write_predictions(
            job.output, numbers, logits, None, names, text=texts, problem_type=problem
        )
        tell(f"{len(rows):,} predictions: {job.output}")
    return logits


def _lines(
    texts: Sequence[str], logits: np.ndarray, names: Sequence[str], problem: str
) -> list[dict[str, Any]]:
    if problem == "regression":
        return [{"text": t, "prediction": float(z[0])} for t, z in zip(texts, logits, strict=True)]
    if problem == "multi_label_classification":
        chosen = [", ".join(n for n, z in zip(names, row, strict=True) if z > 0) for row in logits]
        top = sigmoid(logits).max(-1)
    else:
        chosen = [names[k] for k in logits.argmax(-1)]
        top = softmax(logits).max(-1)
    return [
        {"text": text, "prediction": name, "probability": float(p)}
        for text, name, p in zip(texts, chosen, top, strict=True)
    ]
