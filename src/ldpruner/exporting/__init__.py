"""Exports denoisers to other runtimes."""
