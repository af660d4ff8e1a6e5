"""Prune latent diffusion models: any diffusers pipeline, a budget, and proof."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldpruner.budget import Budget
    from ldpruner.errors import LdPrunerError
    from ldpruner.evaluation.evaluate import Evaluation, evaluate
    from ldpruner.exporting.export import export
    from ldpruner.finetuning.settings import History, Training
    from ldpruner.finetuning.trainer import finetune
    from ldpruner.operators.choosing import find_operators
    from ldpruner.operators.discovery import Operator
    from ldpruner.pipelines.probe import Probe
    from ldpruner.pruning.lora import adapt_lora
    from ldpruner.pruning.saving import save
    from ldpruner.pruning.serialization import load
    from ldpruner.pruning.surgery import prune, prune_
    from ldpruner.publishing.hub import push
    from ldpruner.report.page import write_report
    from ldpruner.scoring.adaptive import score_operators
    from ldpruner.scoring.results import Score, Scores
    from ldpruner.selection.plan import Plan
    from ldpruner.selection.select import select
    from ldpruner.workflow import Outcome, run

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "Evaluation",
    "History",
    "LdPrunerError",
    "Operator",
    "Outcome",
    "Plan",
    "Probe",
    "Score",
    "Scores",
    "Training",
    "adapt_lora",
    "evaluate",
    "export",
    "find_operators",
    "finetune",
    "load",
    "prune",
    "prune_",
    "push",
    "run",
    "save",
    "score_operators",
    "select",
    "write_report",
]

# torch, diffusers and transformers take seconds to import: each name is imported when it is first used.
_MODULES = {
    "budget": ("Budget",),
    "errors": ("LdPrunerError",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "exporting.export": ("export",),
    "finetuning.settings": ("History", "Training"),
    "finetuning.trainer": ("finetune",),
    "operators.choosing": ("find_operators",),
    "operators.discovery": ("Operator",),
    "pipelines.probe": ("Probe",),
    "pruning.lora": ("adapt_lora",),
    "pruning.saving": ("save",),
    "pruning.serialization": ("load",),
    "pruning.surgery": ("prune", "prune_"),
    "publishing.hub": ("push",),
    "report.page": ("write_report",),
    "scoring.adaptive": ("score_operators",),
    "scoring.results": ("Score", "Scores"),
    "selection.plan": ("Plan",),
    "selection.select": ("select",),
    "workflow": ("Outcome", "run"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # else every name would pass for one of this module

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
