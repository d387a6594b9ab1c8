"""Edits of the module tree as plain records, and whether a record that comes from a file is an edit at all."""

# pyright: reportUnusedImport=false
from layerprune.edits.records import (
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
    name_before,
    ranges,
    taken_out,
)
from layerprune.edits.validation import why_malformed
