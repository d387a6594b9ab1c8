"""The user's module tree: copies, comparisons, interposed calls and restored state.

Works on ``nn.Module`` objects alone; capture and layer graphs import it.
"""

# pyright: reportUnusedImport=false
from layerprune.modules.call_tracker import CallKey, CallTracker, OnModule, RunningCall
from layerprune.modules.external_state import ExternalState
from layerprune.modules.fingerprint import difference, structure
from layerprune.modules.interpose import (
    FunctionWatch,
    OperationWatch,
    hooks_watched,
    no_fast_path,
    nothing,
    reached,
    unfuse,
    watched,
)
from layerprune.modules.parameters import buffers, named_buffers, named_parameters, parameters
from layerprune.modules.reachability import notes_on_unseen_state
from layerprune.modules.snapshot import AttributeSnapshot, Held
from layerprune.modules.state import ModelState
from layerprune.modules.supported import check_supported
from layerprune.modules.tensor_keys import StrongTensorKeys, WeakTensorKeys, storage_key
from layerprune.modules.tree import (
    Tree,
    clone,
    fingerprint,
    is_transposed,
    named_tensors,
    names_by_module,
    names_with_nan,
    num_params,
    own,
    own_tensors,
    slots,
    unwrap,
)
from layerprune.modules.undo import Undo, UndoLog, write
