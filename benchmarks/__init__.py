"""Studies behind the numbers in the documents. Each appends its cells to `benchmarks/results/STUDY.jsonl`."""
