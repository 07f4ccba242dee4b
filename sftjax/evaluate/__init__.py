"""Metrics with intervals, calibration, what was retained, predictions, tables and plots."""

from sftjax.evaluate.bootstrap import Interval, Metric, bootstrap, paired_bootstrap
from sftjax.evaluate.calibration import (
    Bins,
    brier,
    calibration_bins,
    ece,
    log_softmax,
    nll,
    sigmoid,
    softmax,
)
from sftjax.evaluate.checks import Undefined
from sftjax.evaluate.classification import (
    PerClass,
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    macro_f1,
    mcc,
    per_class,
    weighted_f1,
)
from sftjax.evaluate.copying import Copied, Lengths, copied, lead, lengths, sentences
from sftjax.evaluate.moved import Moved, block_names, largest_singular_value, moved, whole
from sftjax.evaluate.multilabel import (
    multilabel_macro_f1,
    multilabel_micro_f1,
    per_label,
    subset_accuracy,
)
from sftjax.evaluate.paired import paired_difference, summarize, t_interval
from sftjax.evaluate.pareto import Measured, Point, pareto_front, point
from sftjax.evaluate.pareto_plot import pareto
from sftjax.evaluate.plots import domains, loss_curve, moved_per_block, reliability
from sftjax.evaluate.predict import predict
from sftjax.evaluate.ranking import (
    auroc,
    auroc_one_vs_rest,
    auroc_per_label,
    average_precision,
    average_ranks,
)
from sftjax.evaluate.regression import mae, mse, pearson, r2, rmse, spearman
from sftjax.evaluate.retention import Drift, Forgetting, Retention, retention
from sftjax.evaluate.retrieval import Retrieval, same_group_retrieval
from sftjax.evaluate.rouge import Overlap, mean_interval, rouge
from sftjax.evaluate.similarity import kl_divergence, linear_cka
from sftjax.evaluate.standard import metrics, standard
from sftjax.evaluate.summaries import (
    SUMMARY_COLUMNS,
    Summaries,
    lead_words,
    leads,
    measure_summaries,
)
from sftjax.evaluate.tables import cell, table, table_markdown, table_rich
from sftjax.evaluate.tokens import (
    Entity,
    EntityScores,
    entities,
    entity_counts,
    entity_f1,
    entity_f1_of_counts,
    entity_scores,
    tags_of_ids,
    token_accuracy,
)
from sftjax.evaluate.translation import bleu, chrf
from sftjax.evaluate.write import write_predictions

__all__ = [
    "SUMMARY_COLUMNS",
    "Bins",
    "Copied",
    "Drift",
    "Entity",
    "EntityScores",
    "Forgetting",
    "Interval",
    "Lengths",
    "Measured",
    "Metric",
    "Moved",
    "Overlap",
    "PerClass",
    "Point",
    "Retention",
    "Retrieval",
    "Summaries",
    "Undefined",
    "accuracy",
    "auroc",
    "auroc_one_vs_rest",
    "auroc_per_label",
    "average_precision",
    "average_ranks",
    "balanced_accuracy",
    "bleu",
    "block_names",
    "bootstrap",
    "brier",
    "calibration_bins",
    "cell",
    "chrf",
    "confusion_matrix",
    "copied",
    "domains",
    "ece",
    "entities",
    "entity_counts",
    "entity_f1",
    "entity_f1_of_counts",
    "entity_scores",
    "kl_divergence",
    "largest_singular_value",
    "lead",
    "lead_words",
    "leads",
    "lengths",
    "linear_cka",
    "log_softmax",
    "loss_curve",
    "macro_f1",
    "mae",
    "mcc",
    "mean_interval",
    "measure_summaries",
    "metrics",
    "moved",
    "moved_per_block",
    "mse",
    "multilabel_macro_f1",
    "multilabel_micro_f1",
    "nll",
    "paired_bootstrap",
    "paired_difference",
    "pareto",
    "pareto_front",
    "pearson",
    "per_class",
    "per_label",
    "point",
    "predict",
    "r2",
    "reliability",
    "retention",
    "rmse",
    "rouge",
    "same_group_retrieval",
    "sentences",
    "sigmoid",
    "softmax",
    "spearman",
    "standard",
    "subset_accuracy",
    "summarize",
    "t_interval",
    "table",
    "table_markdown",
    "table_rich",
    "tags_of_ids",
    "token_accuracy",
    "weighted_f1",
    "whole",
    "write_predictions",
]
