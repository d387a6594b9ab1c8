"""A pruned model in a folder of safetensors files, its plan and a manifest, and back."""

# pyright: reportUnusedImport=false
from layerprune.checkpoint.atomic_files import digest, write_record, write_tensors
from layerprune.checkpoint.hub import from_hub, push_to_hub
from layerprune.checkpoint.load import load_pruned
from layerprune.checkpoint.manifest import verify
from layerprune.checkpoint.marked_saving import allow_marked_saving
from layerprune.checkpoint.save import save_pruned
from layerprune.checkpoint.transformers_folder import save_as_it_came
