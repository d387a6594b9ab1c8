"""Knowledge of timm and transformers: example inputs, configs, key-value caches, containers of layers.

Neither library is imported before one of its models is seen, so the rest of the package works without them.
"""

# pyright: reportUnusedImport=false
from layerprune.adapters.timm import timm_example_inputs
from layerprune.adapters.timm_features import feature_info_changes
from layerprune.adapters.transformers.example_inputs import (
    builds_from_config,
    settle_config,
    transformers_example_inputs,
    untie_in_config,
)
from layerprune.adapters.transformers.generation_config import check_generation_config, generation_config_changes
from layerprune.adapters.transformers.kv_cache import (
    PLACES,
    CacheUse,
    by_name,
    cache_growth,
    generates,
    may_cache,
    observe_cache,
)
from layerprune.adapters.transformers.reference_model import owner_of
from layerprune.adapters.transformers.stack_shortening import Stack, shorten_stacks, stacks_by_owner
