"""Measurements behind the numbers in the documents. Each script writes JSON into `benchmarks/results/`."""
