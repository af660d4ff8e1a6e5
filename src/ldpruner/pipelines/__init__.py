"""Running any diffusers pipeline: its denoiser, its samples, its inputs."""
