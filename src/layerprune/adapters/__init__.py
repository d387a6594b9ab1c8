"""What model libraries need beyond the generic path."""
