"""Cost and quality of a pruned pipeline and its original."""
