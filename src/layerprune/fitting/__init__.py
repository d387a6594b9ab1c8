"""Linear least squares on activations: layers as matrices, ridge regression, and fitted projections."""

from layerprune.fitting.fold_plan import fold_alone, fold_into, missed_by
from layerprune.fitting.layer_matrix import (
    add_output,
    as_weight,
    channel_dim,
    exact,
    has_free_bias,
    layout,
    matrix_of,
    num_groups,
    num_rows,
    output_of,
    rows_of,
    single,
    why_not_solvable,
)
from layerprune.fitting.projection_fit import ProjectionReport, Projections
from layerprune.fitting.ridge import STRENGTHS, Fit, Gram, Sums, fit

__all__ = [
    "STRENGTHS",
    "Fit",
    "Gram",
    "ProjectionReport",
    "Projections",
    "Sums",
    "add_output",
    "as_weight",
    "channel_dim",
    "exact",
    "fit",
    "fold_alone",
    "fold_into",
    "has_free_bias",
    "layout",
    "matrix_of",
    "missed_by",
    "num_groups",
    "num_rows",
    "output_of",
    "rows_of",
    "single",
    "why_not_solvable",
]
