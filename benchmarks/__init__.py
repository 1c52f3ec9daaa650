"""Side-by-side measurements against peers; `results/` keeps them as CSV."""
