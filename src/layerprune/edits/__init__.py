"""Edits of the module tree as plain records, and their validation."""

# pyright: reportUnusedImport=false
from layerprune.edits.records import (
    Boundary,
    Delete,
    Drop,
    DropParameter,
    Edit,
    Fold,
    Guard,
    Pass,
    Ranges,
    Shorten,
    Slice,
    TakePlace,
    Vacate,
    folds_of,
    is_under,
    joined,
    kept_ranges,
    leave_stand_ins,
    name_before,
    ranges,
    renumbering,
    rounds_of,
    taken_out,
)
from layerprune.edits.validation import why_malformed
