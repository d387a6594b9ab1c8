"""What a model costs, and what a removal saves of it."""
