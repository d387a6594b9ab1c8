"""All private names of torch that the package uses; ``docs/internals/torch.md`` lists them.

A renamed name in a new version of torch needs a change here only.
"""

# pyright: reportUnusedImport=false
from layerprune.torch_internals.compiler import (
    INNER_OF_COMPILED,
    constant,
    is_strict_export,
    is_tracing,
    tree_map,
    uncompiled,
)
from layerprune.torch_internals.fake import (
    NEEDS_VALUES,
    FakeTensor,
    FakeTensorMode,
    UnknownValue,
    fake_like,
    quiet,
    to_fake,
)
from layerprune.torch_internals.layers import (
    PACKED_WEIGHTS,
    PADDING_FOR_PAD,
    POOLS,
    BatchNorm,
    BatchOrInstanceNorm,
    Conv,
    Dropout,
)
from layerprune.torch_internals.memory import is_wrapper_subclass, num_writes, sparse_parts, storage_id
from layerprune.torch_internals.modes import (
    DispatchMode,
    innermost_function_mode,
    no_function_modes,
    no_function_subclasses,
    no_modes,
)
from layerprune.torch_internals.modules import (
    GLOBAL_HOOKS,
    HOOK_DICTS,
    MODULE_CALL,
    MODULE_CALLS,
    MODULE_DICTS,
    FollowsCasts,
    buffers_of,
    children_of,
    has_hooks,
    hooks_of,
    parameters_of,
    pre_hooks_of,
    registry_of,
    tensors_of,
    unsaved_buffers,
    with_parameters,
)
from layerprune.torch_internals.operations import (
    CustomOpDef,
    OpOverload,
    OpOverloadPacket,
    name_of_custom_op,
    schema_of,
)
