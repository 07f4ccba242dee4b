"""Metrics with intervals, calibration, what was retained, predictions, tables and plots."""

from sftjax.evaluate.bootstrap import Interval, Metric, bootstrap, paired_bootstrap
from sftjax.evaluate.calibration import (
    Bins,
    brier,
    calibration_bins,
    ece,
    ece_equal_mass,
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
from sftjax.evaluate.conformal import (
    Conformal,
    coverage,
    fit_conformal,
    mean_size,
)
from sftjax.evaluate.grading import (
    cohen_kappa,
    dice,
    dice_per_class,
    quadratic_kappa,
)
from sftjax.evaluate.moved import Moved, block_names, largest_singular_value, moved, whole
from sftjax.evaluate.multilabel import (
    multilabel_macro_f1,
    multilabel_micro_f1,
    per_label,
    subset_accuracy,
)
from sftjax.evaluate.outliers import (
    Gaussians,
    Neighbours,
    energy_score,
    fit_gaussians,
    fit_neighbours,
    knn_score,
    mahalanobis_score,
    msp_score,
    relative_mahalanobis_score,
)
from sftjax.evaluate.overlay import (
    overlays,
)
from sftjax.evaluate.paired import paired_difference, summarize, t_interval
from sftjax.evaluate.pareto import Measured, Point, pareto_front, point
from sftjax.evaluate.pareto_plot import pareto
from sftjax.evaluate.patchcore import (
    MemoryBank,
    fit_memory_bank,
    patch_distances,
    patch_features,
    picture_scores,
)
from sftjax.evaluate.plots import domains, loss_curve, moved_per_block, reliability
from sftjax.evaluate.predict import predict
from sftjax.evaluate.ranking import (
    auroc,
    auroc_one_vs_rest,
    auroc_per_class,
    auroc_per_label,
    average_precision,
    average_precision_one_vs_rest,
    average_precision_per_class,
    average_ranks,
)
from sftjax.evaluate.recalibrate import (
    Isotonic,
    Scaling,
    fit_isotonic,
    fit_temperature,
    fit_vector,
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
from sftjax.evaluate.saliency import (
    as_grid,
    attention_rollout,
    grad_cam,
)
from sftjax.evaluate.screening import (
    Screening,
    Threshold,
    at_threshold,
    choose_threshold,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from sftjax.evaluate.similarity import kl_divergence, linear_cka
from sftjax.evaluate.standard import metrics, standard
from sftjax.evaluate.subgroups import (
    subgroup_table,
    with_intervals,
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
    "Bins",
    "Conformal",
    "Copied",
    "Drift",
    "Entity",
    "EntityScores",
    "Forgetting",
    "Gaussians",
    "Interval",
    "Isotonic",
    "Lengths",
    "Measured",
    "MemoryBank",
    "Metric",
    "Moved",
    "Neighbours",
    "Overlap",
    "PerClass",
    "Point",
    "Retention",
    "Retrieval",
    "SUMMARY_COLUMNS",
    "Scaling",
    "Screening",
    "Summaries",
    "Threshold",
    "Undefined",
    "accuracy",
    "as_grid",
    "at_threshold",
    "attention_rollout",
    "auroc",
    "auroc_one_vs_rest",
    "auroc_per_class",
    "auroc_per_label",
    "average_precision",
    "average_precision_one_vs_rest",
    "average_precision_per_class",
    "average_ranks",
    "balanced_accuracy",
    "bleu",
    "block_names",
    "bootstrap",
    "brier",
    "calibration_bins",
    "cell",
    "choose_threshold",
    "chrf",
    "cohen_kappa",
    "confusion_matrix",
    "copied",
    "coverage",
    "dice",
    "dice_per_class",
    "domains",
    "ece",
    "ece_equal_mass",
    "energy_score",
    "entities",
    "entity_counts",
    "entity_f1",
    "entity_f1_of_counts",
    "entity_scores",
    "fit_conformal",
    "fit_gaussians",
    "fit_isotonic",
    "fit_memory_bank",
    "fit_neighbours",
    "fit_temperature",
    "fit_vector",
    "grad_cam",
    "kl_divergence",
    "knn_score",
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
    "mahalanobis_score",
    "mcc",
    "mean_interval",
    "mean_size",
    "measure_summaries",
    "metrics",
    "moved",
    "moved_per_block",
    "mse",
    "msp_score",
    "multilabel_macro_f1",
    "multilabel_micro_f1",
    "nll",
    "overlays",
    "paired_bootstrap",
    "paired_difference",
    "pareto",
    "pareto_front",
    "patch_distances",
    "patch_features",
    "pearson",
    "per_class",
    "per_label",
    "picture_scores",
    "point",
    "predict",
    "quadratic_kappa",
    "r2",
    "relative_mahalanobis_score",
    "reliability",
    "retention",
    "rmse",
    "rouge",
    "same_group_retrieval",
    "sensitivity_at_specificity",
    "sentences",
    "sigmoid",
    "softmax",
    "spearman",
    "specificity_at_sensitivity",
    "standard",
    "subgroup_table",
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
    "with_intervals",
    "write_predictions",
]
