"""One forward of a copy of the user's model becomes a layer graph; later runs are held against it.

The sandbox is the only place where a user's forward runs for planning.
"""

from layerprune.capture.activation_store import Holding, Shared
from layerprune.capture.calibration import (
    FEW_SAMPLES,
    Batch,
    Loss,
    about_calibration,
    fitting,
    given_calibration,
    notes_of,
    read_calibration,
)
from layerprune.capture.capture import capture, record_on, record_real, record_results, record_training
from layerprune.capture.finite_check import finite_ones, first_not_finite, require_finite, spoilt_inputs
from layerprune.capture.first_capture import record_first
from layerprune.capture.probe import Observer, See
from layerprune.capture.recorder import ParameterWritten
from layerprune.capture.sandbox import Shadow, fake_shadow, gradient_shadow, is_about_fakes, real_shadow, short
from layerprune.capture.shape_cache import NAMED, FunctionMemo, Memo, has_memo
from layerprune.capture.trace_variants import Variants

__all__ = [
    "FEW_SAMPLES",
    "NAMED",
    "Batch",
    "FunctionMemo",
    "Holding",
    "Loss",
    "Memo",
    "Observer",
    "ParameterWritten",
    "See",
    "Shadow",
    "Shared",
    "Variants",
    "about_calibration",
    "capture",
    "fake_shadow",
    "finite_ones",
    "first_not_finite",
    "fitting",
    "given_calibration",
    "gradient_shadow",
    "has_memo",
    "is_about_fakes",
    "notes_of",
    "read_calibration",
    "real_shadow",
    "record_first",
    "record_on",
    "record_real",
    "record_results",
    "record_training",
    "require_finite",
    "short",
    "spoilt_inputs",
]
