"""Search strategies for a set of removals, by name."""
