"""Benchmarks against peers. `results/` contains the results as CSV files."""
