"""What a model costs, measured as it is, and what removals take of it; one noun a file."""
