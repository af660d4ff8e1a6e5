"""Finetuning a pruned pipeline, with the original as teacher.

trainer             the training loop
distillation        the teacher, its examples, and the losses of a student
conditioning        how the pipeline calls its denoiser
examples            latents and conditions, kept on disk
dataset, encoding   pictures and sounds, and their latents
objectives          adding noise, and the target of the prediction
losses              distances of predictions and of features
settings, state     the settings of a run, and the contents of its checkpoint
"""

from typing import TYPE_CHECKING, Any

from ldpruner.finetuning.settings import History, Training

if TYPE_CHECKING:
    from ldpruner.finetuning.trainer import Finetuning, finetune

__all__ = ["Finetuning", "History", "Training", "finetune"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports the trainer when it is first used: settings alone need no torch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ldpruner.finetuning import trainer

        return getattr(trainer, name)
