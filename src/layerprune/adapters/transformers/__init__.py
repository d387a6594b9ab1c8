"""Models of transformers: their configs, input fields, key-value caches, and smaller configs for fewer layers."""
