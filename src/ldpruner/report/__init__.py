"""A run folder as one page: what was removed, why, what it gained and what it cost."""
