"""Finetuning a pruned pipeline, with the original as teacher.

training            the loop
lesson              the teacher, and what it teaches with, made ready
calls               how the pipeline calls its denoiser
examples            latents and what goes with them, kept on disk
dataset, encoding   pictures and sounds, row by row; from them to latents
objectives          noise, and what is to be found in noisy latents
losses              the task, the teacher's output, the teacher's features
settings            how long, how fast, by which losses
state, checkpoints  what a run is, in memory and on disk
"""

from ldpruner.finetuning.settings import History, Training
from ldpruner.finetuning.trainer import Finetuning, finetune

__all__ = ["Finetuning", "History", "Training", "finetune"]
