"""Finetuning a pruned pipeline, with the original as teacher.

calls        how the pipeline calls its denoiser
dataset      pictures and sounds, row by row
encoding     from them to latents
examples     latents and what goes with them, kept on disk
objectives   noise, and what is to be found in noisy latents
losses       the task, the teacher's output, the teacher's features
settings     how long, how fast, by which losses
state, checkpoints  what a run is, in memory and on disk
training     the loop
"""

from ldpruner.finetuning.settings import History, Training
from ldpruner.finetuning.training import Finetuning, finetune

__all__ = ["Finetuning", "History", "Training", "finetune"]
