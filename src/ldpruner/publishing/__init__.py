"""Publishing a pruned pipeline: its model card, and the upload to the Hub."""
