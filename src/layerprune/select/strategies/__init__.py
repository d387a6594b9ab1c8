"""Strategies: ways to search for a set of removals, by name."""
