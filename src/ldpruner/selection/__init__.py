"""What to remove."""
