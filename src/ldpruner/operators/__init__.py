"""What can be removed from a denoiser."""
