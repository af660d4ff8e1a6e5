"""Can a pruned few-step model be recovered? At its own timesteps, and with the plain denoising loss for comparison.

    python -m benchmarks.few_step --data DATA --work DIR

`zoo:digits` is distilled to four steps by consistency distillation (Song et al. 2023, arXiv 2303.01469; with the
scheduler of latent consistency models, Luo et al. 2023, arXiv 2310.04378). It is pruned, and finetuned in both ways
for the same steps. Frechet distances are to the test images.
"""

import argparse
import copy
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from torch import Tensor

import ldpruner
from benchmarks.models import Model, open_model
from benchmarks.records import cell, markdown, read
from ldpruner.finetuning import Training
from ldpruner.finetuning.encoding import find_encoder
from ldpruner.finetuning.state import read_tensors, write_tensors

STUDY = "few_step"
STEPS = 4
LEVELS = 50  # among which the scheduler chooses its four timesteps
DISTILLATION = {"steps": 600, "batch": 32, "rate": 2e-4, "decay": 0.95, "final_decay": 0.99}
SIGMA_DATA, SCALING = 0.5, 10.0  # of the boundary condition, as in LCMScheduler
PICTURES = 512
USUAL_STEPS = 25
TRAINING = Training(train_batch_size=16, learning_rate=2e-4, ema_decay=0.99, early_stopping_patience=None)
PLAIN: dict[str, Any] = {
    "timesteps": "all",
    "task_loss_weight": 1.0,
    "output_kd_weight": 0.0,
    "feature_kd_weight": 0.0,
}
NAMES = {
    "usual": "zoo:digits, 25 steps",
    "few": "zoo:digits, 4 steps, not distilled",
    "original": "distilled, 4 steps",
    "pruned": "pruned",
    "recovered": "recovered at its own timesteps",
    "plain": "recovered with the denoising loss",
}

logger = logging.getLogger(__name__)


def main() -> None:
    """Measures the seeds that are missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.zip and test.zip")
    parser.add_argument("--work", type=Path, required=True, help="for the distilled weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--macs", type=float, default=0.65, help="the share of the MACs to keep")
    parser.add_argument("--training-steps", type=int, default=400)
    options = parser.parse_args()
    model = open_model("digits", options.data)
    for seed in options.seeds:
        settings = {
            "model": "digits",
            "steps": STEPS,
            "seed": seed,
            "distillation": DISTILLATION,
            "macs": options.macs,
        }
        settings |= {"training_steps": options.training_steps, "pictures": PICTURES}
        training = TRAINING.replace(seed=seed, max_train_steps=options.training_steps)
        measure = functools.partial(_measured, model, options.work, ldpruner.Budget(macs=options.macs), training)
        cell(STUDY, settings, measure)


def _measured(model: Model, work: Path, budget: ldpruner.Budget, training: Training) -> dict[str, Any]:
    """The Frechet distances of one seed."""
    seed = training.seed
    original = _few_step(model, work / f"distilled-{seed}.safetensors", seed)
    probe = ldpruner.Probe(samples=16, steps=STEPS, seed=seed)
    scores = ldpruner.score_operators(original, None, probe, budgets=[budget])
    pruned = ldpruner.prune(original, ldpruner.select(scores, budget))
    pipelines: dict[str, Any] = {"original": original, "pruned": pruned}
    trainings: dict[str, dict[str, Any]] = {"recovered": {"timesteps": "pipeline"}, "plain": PLAIN}
    for name, changes in trainings.items():
        teacher, student = copy.deepcopy(original), copy.deepcopy(pruned)
        if name == "plain":  # there is no denoising loss for the scheduler of a consistency model
            teacher.scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
        data = model.train if name == "plain" else None
        settings = training.replace(**changes)
        ldpruner.finetune(student, teacher, data, probe=probe.replace(samples=256), training=settings)
        pipelines[name] = student
    distances = {name: model.distance(pipeline, PICTURES, STEPS, seed) for name, pipeline in pipelines.items()}
    usual = {"usual": USUAL_STEPS, "few": STEPS}
    distances |= {name: model.distance(model.pipeline, PICTURES, steps, seed) for name, steps in usual.items()}
    return {"distance": distances}


def _few_step(model: Model, path: Path, seed: int) -> DiffusionPipeline:
    """The model, distilled to a few steps; the weights are kept in a file."""
    pipeline: Any = copy.deepcopy(model.pipeline)
    if path.exists():
        pipeline.unet.load_state_dict(read_tensors(path)[0])
    else:
        encoder = find_encoder(pipeline, ldpruner.Probe(samples=1, steps=2))
        latents = [encoder([model.train[index]["image"]]) for index in range(len(model.train))]
        _distill_(pipeline.unet, pipeline.scheduler, torch.cat(latents), seed)
        write_tensors(path, pipeline.unet.state_dict())
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, original_inference_steps=LEVELS)
    return cast(DiffusionPipeline, pipeline)


def _distill_(network: Any, scheduler: Any, latents: Tensor, seed: int) -> None:
    """Consistency distillation: what the network gives at a level is what its average gives one level lower."""
    settings = DISTILLATION
    torch.manual_seed(seed)
    teacher, average, final = (copy.deepcopy(network).requires_grad_(False) for _ in range(3))
    optimizer = torch.optim.AdamW(network.train().parameters(), settings["rate"], weight_decay=0)
    stride = scheduler.config.num_train_timesteps // LEVELS
    alphas = scheduler.alphas_cumprod.float()
    for step in range(int(settings["steps"])):
        clean = latents[torch.randint(len(latents), (int(settings["batch"]),))]
        levels = torch.randint(1, LEVELS + 1, (len(clean),))
        times, lower = levels * stride - 1, (levels - 1) * stride - 1  # -1: no noise
        alpha, sigma = _shares(alphas, times)
        noisy = alpha * clean + sigma * torch.randn_like(clean)
        with torch.no_grad():
            velocity = teacher(noisy, times).sample
            signal, noise = alpha * noisy - sigma * velocity, sigma * noisy + alpha * velocity
            alpha, sigma = _shares(alphas, lower)
            target = _consistent(average, alphas, alpha * signal + sigma * noise, lower)
        loss = ((_consistent(network, alphas, noisy, times) - target).square() + 1e-4).sqrt().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for copied, decay in ((average, settings["decay"]), (final, settings["final_decay"])):
            for weight, new in zip(copied.parameters(), network.parameters(), strict=True):
                weight.lerp_(new.detach(), 1 - decay)
        if step % 50 == 0:
            logger.info("distillation %d, loss %.4f", step, loss.item())
    network.load_state_dict(final.state_dict())
    network.eval()


def _consistent(network: Any, alphas: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    """The consistency function of a network that predicts velocities; without noise it changes nothing."""
    scaled = times.clamp(min=0).float().reshape(-1, 1, 1, 1) * SCALING
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    alpha, sigma = _shares(alphas, times)
    signal = alpha * noisy - sigma * network(noisy, times.clamp(min=0)).sample
    mixed: Tensor = skip * noisy + scaled / (scaled**2 + SIGMA_DATA**2).sqrt() * signal
    return torch.where((times < 0).reshape(-1, 1, 1, 1), noisy, mixed)


def _shares(alphas: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of the signal and of the noise at timesteps, [batch, 1, 1, 1]."""
    signal = torch.where(times >= 0, alphas[times.clamp(min=0)], torch.ones(())).reshape(-1, 1, 1, 1)
    return signal.sqrt(), (1 - signal).sqrt()


# Tables


def table() -> Iterator[str]:
    """A row for each pipeline, a column for each seed."""
    records = read(STUDY)
    settings = [record["settings"] for record in records]
    columns = (f"{one['macs']:.0%} of the MACs, {one['training_steps']} steps, seed {one['seed']}" for one in settings)
    head = ["pipeline", *columns]
    rows = [[label, *(f"{r['result']['distance'][name]:.2f}" for r in records)] for name, label in NAMES.items()]
    yield from markdown(head, rows)


if __name__ == "__main__":
    main()
