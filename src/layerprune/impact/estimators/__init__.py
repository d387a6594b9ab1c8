"""Estimates of all impacts from one pass over the data: norms, output changes and losses by one backward."""
