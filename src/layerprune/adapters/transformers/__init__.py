"""Adapters for transformers models: configs, input fields, key-value caches, smaller configs for fewer layers."""
