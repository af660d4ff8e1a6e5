"""Prune latent diffusion models: any diffusers pipeline, a budget, and proof."""

from ldpruner.budget import Budget
from ldpruner.errors import LdPrunerError
from ldpruner.evaluation.evaluate import Evaluation, evaluate
from ldpruner.finetuning import Training, finetune
from ldpruner.operators.discovery import Operator, find_operators
from ldpruner.pipelines.probe import Probe
from ldpruner.pruning.serialization import load, save
from ldpruner.pruning.surgery import prune, prune_
from ldpruner.scoring.adaptive import score_operators
from ldpruner.scoring.results import Score, Scores
from ldpruner.selection.plan import Plan
from ldpruner.selection.select import select

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
