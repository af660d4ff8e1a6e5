"""Removing operators for good, and saving what is left."""
