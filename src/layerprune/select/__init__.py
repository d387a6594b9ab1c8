"""Selection: which removals to make within a budget; one noun a file, the strategies among them."""
