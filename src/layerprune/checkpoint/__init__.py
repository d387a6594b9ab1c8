"""Saves a pruned model as a folder of safetensors files, plans and a manifest, and loads it."""

# pyright: reportUnusedImport=false
from layerprune.checkpoint.atomic_files import digest, write_record, write_tensors
from layerprune.checkpoint.hub import from_hub, push_to_hub
from layerprune.checkpoint.load import holds_artefact, load_pruned, load_weights
from layerprune.checkpoint.manifest import Manifest, is_artefact, read_manifest, verify
from layerprune.checkpoint.marked_saving import allow_marked_saving
from layerprune.checkpoint.save import save_pruned
from layerprune.checkpoint.transformers_folder import save_as_it_came
