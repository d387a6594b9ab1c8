"""Checkpoints: a pruned model in a folder, of safetensors, its plan and a manifest, and back."""
