"""The small latent diffusion models that this project trains for itself, and how each was made."""
