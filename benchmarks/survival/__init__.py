"""The checks of ``benchmarks/reliability.py``: each runs ``count`` cases from number ``start`` on, and counts."""
