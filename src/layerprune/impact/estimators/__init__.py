"""Estimates of all impacts from one pass over the data."""
