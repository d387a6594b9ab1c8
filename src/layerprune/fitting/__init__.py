"""Linear least squares on activations: layers as matrices, ridge regression, fitted projections."""

# pyright: reportUnusedImport=false
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
