"""What a pipeline costs."""
