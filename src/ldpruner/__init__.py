"""Prune latent diffusion models: any diffusers pipeline, a budget, and proof."""

from ldpruner.budgets import Budget
from ldpruner.errors import LdPrunerError
from ldpruner.evaluation import Evaluation, evaluate
from ldpruner.finetuning import Training, finetune
from ldpruner.operators import Operator, find_operators
from ldpruner.probe import Probe
from ldpruner.racing import score_operators
from ldpruner.saving import load, save
from ldpruner.scores import Score, Scores
from ldpruner.selection import Plan, select
from ldpruner.surgery import prune, prune_

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "Evaluation",
    "LdPrunerError",
    "Operator",
    "Plan",
    "Probe",
    "Score",
    "Scores",
    "Training",
    "evaluate",
    "find_operators",
    "finetune",
    "load",
    "prune",
    "prune_",
    "save",
    "score_operators",
    "select",
]
