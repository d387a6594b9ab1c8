"""What a removal costs in quality: one criterion a file."""
