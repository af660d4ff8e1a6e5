"""Cost and quality of a pruned pipeline beside its original."""
