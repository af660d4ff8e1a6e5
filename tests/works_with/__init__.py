"""What works with a pruned pipeline: things that people do with pipelines, on small pipelines with random weights."""
