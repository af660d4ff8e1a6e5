"""Finetuning a pruned pipeline, with the original as teacher.

trainer             the training loop
distillation        the teacher, its examples, and the losses of a student
conditioning        how the pipeline calls its denoiser
examples            latents and conditions, kept on disk
conditions          each distinct condition once
dataset, metadata   pictures and sounds, with their captions
encoding            pictures as latents
objectives          adding noise, and the target of the prediction
losses              distances of predictions and of features
lora, teacher       recovery by a LoRA; a teacher that is offloaded, or whose outputs are cached
memory              what a training step takes
settings, state     the settings of a run, and the contents of its checkpoint
accelerator         devices, precision and processes
"""

from ldpruner.finetuning.settings import History, Training

__all__ = ["History", "Training"]
