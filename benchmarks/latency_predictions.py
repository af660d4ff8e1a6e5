"""Predicted and measured latency of plans: the models of the zoo, and a network that nothing was tuned on.

    python -m benchmarks.latency_predictions [--models ldm]

Each model is scored once. For each budget, `select` and `prune` make a pruned pipeline. Then whole calls of both
pipelines are timed in turn.
"""

import argparse
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel

import ldpruner
from benchmarks.records import cell, markdown, read
from ldpruner.errors import BudgetError
from ldpruner.profiling.benchmark import compare
from ldpruner.pruning.opening import open_pipeline

STUDY = "latency_predictions"
LDM = "ldm"
MODELS = ("zoo:satellite", "zoo:emoji", "zoo:digits", LDM)
KEPT = (0.65, 0.5, 0.35)
STEPS = {"zoo:digits": 25}  # decoding its sounds takes as long as ten steps


def main() -> None:
    """Measures every model that is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    for model in parser.parse_args().models:
        probe = ldpruner.Probe(samples=8, steps=STEPS.get(model, 10))
        settings = {"model": model, "kept": KEPT, "probe": probe.model_dump(mode="json")}
        cell(STUDY, settings, functools.partial(_measured, model, probe))


def _measured(model: str, probe: ldpruner.Probe) -> dict[str, Any]:
    """For each budget the predicted and the measured latency, as fractions of the original's."""
    pipeline = random_ldm() if model == LDM else open_pipeline(model, "cpu")
    probe = probe.completed(pipeline)
    budgets = [ldpruner.Budget(latency=kept) for kept in KEPT]
    scores = ldpruner.score_operators(pipeline, probe=probe, budgets=budgets)
    rows = []
    for budget in budgets:
        try:
            plan = ldpruner.select(scores, budget)
        except BudgetError as error:  # decoding, and what cannot be removed, take too long
            plan = ldpruner.select(scores, budget.replace(latency=error.least))
        assert plan.predicted is not None
        pair = {"original": pipeline, "pruned": ldpruner.prune(pipeline, plan)}
        ratio = compare(pair, probe).latency_ratio
        assert ratio is not None
        rows.append({"predicted": plan.predicted.latency, "measured": ratio.model_dump()})
    machine = scores.costs.machine
    return {
        "modifications": len(scores.scores),
        "threads": machine.threads if machine is not None else None,
        "latency_curve": scores.latency_curve,
        "plans": rows,
    }


def random_ldm() -> DiffusionPipeline:
    """A latent diffusion pipeline of 22 million parameters with random weights."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 128, 192, 256),
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=32,
    )
    autoencoder = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=64,
        norm_num_groups=8,
    )
    return LDMPipeline(autoencoder.eval(), unet.eval(), DDIMScheduler(clip_sample=False))


def table() -> Iterator[str]:
    """A row for each plan."""
    head = ["model", "budget", "predicted", "measured, median (10 to 90 %)", "predicted over measured"]
    yield from markdown(head, [row for record in read(STUDY) for row in _rows(record)])


def _rows(record: dict[str, Any]) -> Iterator[list[str]]:
    for kept, plan in zip(record["settings"]["kept"], record["result"]["plans"], strict=True):
        measured = plan["measured"]
        yield [
            record["settings"]["model"],
            f"latency={kept}",
            f"{plan['predicted']:.3f}",
            f"{measured['median']:.3f} ({measured['p10']:.3f} to {measured['p90']:.3f})",
            f"{plan['predicted'] / measured['median']:.2f}",
        ]


if __name__ == "__main__":
    main()
