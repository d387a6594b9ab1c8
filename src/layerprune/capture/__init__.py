"""Records one forward of a sandbox as a layer graph; later runs are compared with it.

Planning runs a user's forward only in a sandbox.
"""

# pyright: reportUnusedImport=false
from layerprune.capture.activation_store import ActivationStore
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
from layerprune.capture.probe import Probe, See
from layerprune.capture.sandbox import (
    EXAMPLE_INPUTS,
    Sandbox,
    ValuesNeededError,
    attempt,
    fake_sandbox,
    gradient_sandbox,
    on_batch,
    real_sandbox,
)
from layerprune.capture.shape_cache import NAMED, FunctionShapeCache, ShapeCache, has_memo
from layerprune.capture.trace_variants import Variants
