"""Does a LoRA that was trained before pruning still have its style after?

    python -m benchmarks.lora_transfer --data DATA

A LoRA of `zoo:emoji` learns pictures in one tint, dark violet to white. `prune` keeps 65 % of the latency. The LoRA is
loaded on the pruned model without any training.
"""

import argparse
import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

import ldpruner
from benchmarks.models import Model, Pictures, open_model
from benchmarks.records import ROOT, cell, markdown, read
from ldpruner.finetuning import Training
from ldpruner.pipelines.sampling import sample_latents

STUDY = "lora_transfer"
PICTURE = ROOT / "docs" / "lora-transfer.png"
DARK, LIGHT = (60.0, 20.0, 90.0), (255.0, 255.0, 255.0)  # the ends of the tint
KEPT = 0.65
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": TARGETS}
TRAINED = 2048  # pictures
SAMPLES, SHOWN = 64, 10
STEPS = 10
TRAINING = Training(
    max_train_steps=400,
    train_batch_size=16,
    learning_rate=1e-3,
    ema_decay=0.95,
    output_kd_weight=0.0,
    feature_kd_weight=0.0,
    early_stopping_patience=None,
)
ROWS = ("original", "original + LoRA", "pruned", "pruned + LoRA")


def main() -> None:
    """Trains, prunes and measures, if the record is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the emoji's train.zip and test.zip")
    options = parser.parse_args()
    training = TRAINING.model_dump(exclude_none=True)
    settings = {"kept": KEPT, "lora": LORA, "training": training, "pictures": TRAINED, "samples": SAMPLES}
    cell(STUDY, settings, functools.partial(_measured, options.data))


def tinted(pixels: Tensor) -> Tensor:
    """Pictures of bytes, [pictures, 3, height, width], in the tint: only their brightness is left."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    brightness = torch.einsum("bchw,c->bhw", pixels.float() / 255, weights)[:, None]
    dark, light = (torch.tensor(colour)[:, None, None] for colour in (DARK, LIGHT))
    return (dark + brightness * (light - dark)).round().clamp(0, 255).to(torch.uint8)


def off_tint(pixels: Tensor) -> Tensor:
    """How far each picture is from the tint, [pictures]: the mean distance of its pixels to that line of colours."""
    dark, light = torch.tensor(DARK), torch.tensor(LIGHT)
    direction = (light - dark) / (light - dark).norm()
    shifted = pixels.float().permute(0, 2, 3, 1) - dark
    along = (shifted @ direction)[..., None] * direction
    distances: Tensor = (shifted - along).norm(dim=-1)
    return distances.flatten(1).mean(1)


def _measured(data: Path) -> Mapping[str, Any]:
    model = open_model("emoji", data)
    pruned = _pruned(model)
    lora = _trained_lora(model)
    pictures: dict[str, Tensor] = {}
    latents: dict[str, Tensor] = {}
    probe = model.probe(SAMPLES, STEPS, seed=1)
    for name, pipeline in (("original", model.pipeline), ("pruned", pruned)):
        for row in (name, f"{name} + LoRA"):
            if row != name:
                network: Any = pipeline.components["unet"]
                network.load_lora_adapter(lora, prefix=None)
            pictures[row] = model.sample(pipeline, SAMPLES, STEPS, seed=1)
            latents[row] = sample_latents(pipeline, probe, range(SAMPLES))
    _draw(pictures)
    effect, pruned_effect = ((latents[f"{name} + LoRA"] - latents[name]).flatten(1) for name in ("original", "pruned"))
    cosines = torch.cosine_similarity(effect, pruned_effect, dim=1)
    return {
        "off_tint": {row: _mean(off_tint(pictures[row])) for row in ROWS},
        "off_tint_of_the_pictures": _mean(off_tint(model.test[:SAMPLES])),
        "effect_cosine": _mean(cosines),
        "mean_effect_cosine": float(torch.cosine_similarity(effect.mean(0), pruned_effect.mean(0), dim=0)),
        "effect_ratio": _mean(pruned_effect.norm(dim=1) / effect.norm(dim=1)),
        "removed": pruned.components["unet"].config.get("removals", ()),
        "lora_modules": len({key.split(".lora_")[0] for key in lora}),
        "dropped": len(lora) - sum("lora_" in key for key in pruned.components["unet"].state_dict()),
    }


def _mean(values: Tensor) -> dict[str, float]:
    """The mean, and its standard error."""
    return {"mean": float(values.mean()), "standard_error": float(values.std() / len(values) ** 0.5)}


def _pruned(model: Model) -> DiffusionPipeline:
    budget = ldpruner.Budget(latency=KEPT)
    scores = ldpruner.score_operators(model.pipeline, probe=model.probe(8, STEPS, seed=0), budgets=[budget])
    return ldpruner.prune(model.pipeline, ldpruner.select(scores, budget))


def _trained_lora(model: Model) -> dict[str, Tensor]:
    """A LoRA of the original that draws in the tint, by `finetune` on a frozen denoiser."""
    student = ldpruner.load("zoo:emoji")
    network: Any = student.components["unet"]
    torch.manual_seed(0)
    network.requires_grad_(False).add_adapter(peft.LoraConfig(**LORA))
    chosen = torch.randperm(len(model.train), generator=torch.Generator().manual_seed(0))[:TRAINED]
    assert model.train.captions is not None
    captions = [model.train.captions[index] for index in chosen.tolist()]
    rows = Pictures("tinted emoji", tinted(model.train.pixels[chosen]), captions)
    ldpruner.finetune(student, model.pipeline, rows, training=TRAINING)
    weights: dict[str, Tensor] = peft.get_peft_model_state_dict(network)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _draw(pictures: Mapping[str, Tensor]) -> None:
    """A row for each pipeline, the same prompts and seeds in each."""
    rows = [torch.cat(list(pictures[row][:SHOWN]), dim=2) for row in ROWS]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(PICTURE, optimize=True)


def table() -> Iterator[str]:
    """How far each row is from the tint, and the effects of the LoRA compared."""
    (record,) = read(STUDY)
    result = record["result"]
    rows = [[f"off the tint: {row}", _shown(result["off_tint"][row], 1)] for row in ROWS]
    rows += [
        ["off the tint: test pictures", _shown(result["off_tint_of_the_pictures"], 1)],
        ["cosine of the two effects on latents", _shown(result["effect_cosine"], 2)],
        ["cosine of the mean effects", f"{result['mean_effect_cosine']:.2f}"],
        ["size of the effect, pruned to original", _shown(result["effect_ratio"], 2)],
        ["weights of the LoRA that were dropped", f"{result['dropped']} of {2 * result['lora_modules']}"],
    ]
    yield from markdown(["", "mean ± standard error"], rows)


def _shown(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['standard_error']:.{digits}f}"


if __name__ == "__main__":
    main()
