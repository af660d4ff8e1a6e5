"""The model card of a zoo model: its text, curve and samples, all made from `results.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

TEXTS = Path(__file__).parent / "cards"

COLUMNS, SHOWN = 12, 72

MEANINGS = {
    "train": "real training images, drawn at random (what a perfect model would reach)",
    "reconstructions": "test images through the autoencoder and back",
    "samples": "**samples of this model**",
    "colours": "test images, each as one flat colour, its mean",
    "noise": "uniform noise",
}


def write_card(results: Mapping[str, Any], samples: Tensor, folder: Path) -> None:
    """Write `results.json`, `curve.png`, `samples.png` and `README.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_samples(samples, folder / "samples.png")
    write_curve(results["stages"], folder / "curve.png")
    (folder / "README.md").write_text(card_text(results))


def write_notice(model: str, folder: Path) -> None:
    """Put the licence of the weights and the attribution of their data beside them."""
    (folder / "NOTICE").write_text((TEXTS / f"{model}.notice.txt").read_text())


def write_samples(samples: Tensor, path: Path) -> None:
    """The first samples, not chosen, side by side: bytes, [samples, 3, height, width]."""
    shown = samples[: min(SHOWN, len(samples) // COLUMNS * COLUMNS)]
    _, channels, height, width = shown.shape
    rows = shown.reshape(-1, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    grid = rows.reshape(-1, COLUMNS * width, channels).numpy()
    Image.fromarray(grid).save(path, optimize=True)


def write_curve(stages: Mapping[str, Any], path: Path) -> None:
    """The loss of every stage over its steps."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # it chooses its window system when imported

    figure, axes = plt.subplots(1, len(stages), figsize=(2.8 * len(stages), 3), layout="constrained")
    for axis, (name, stage) in zip(axes, stages.items(), strict=True):
        losses = stage["loss_per_50_steps"]
        axis.plot([min(50 * (place + 1), stage["steps"]) for place in range(len(losses))], losses)
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def card_text(results: Mapping[str, Any]) -> str:
    """The model card, in Markdown: the model's own text with the numbers of `results.json`."""
    template = (TEXTS / f"{results['model']}.md").read_text()
    return template.format(**_settings(results["recipe"]), **_numbers(results), **_tables(results))


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    denoiser, scheduler = recipe["denoiser"], recipe["scheduler"]
    kept = ("name", "sampling_steps", "detail", "texture", "divergence")
    side, channels = denoiser["sample_size"], denoiser["in_channels"]
    return {
        **{key: recipe[key] for key in kept},
        **{key: scheduler[key] for key in ("beta_schedule", "beta_start", "beta_end")},
        "levels": scheduler["num_train_timesteps"],
        "latent": f"{side}x{side}x{channels}",
        "latent_size": side * side * channels,
        "shown": SHOWN,
        "last_shown": SHOWN - 1,
    }


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    judge, pipeline = results["judge"], results["pipeline"]
    return {
        **{key: value for key, value in judge.items() if isinstance(value, float)},
        **results["machine"],
        "judge_parameters": judge["parameters"],
        "judge_features": judge["features"],
        "even": 1 / len(judge["sample_classes"]),
        "scale": pipeline["scaling_factor"],
        "megabytes": pipeline["bytes"] / 1e6,
        "train_count": results["images"]["train"],
        "test_count": results["images"]["test"],
        "minutes": sum(stage["minutes"] for stage in results["stages"].values()),
        "signal_to_noise": results["autoencoder"]["peak_signal_to_noise_db"],
        "versions": ", ".join(f"{name} {it}" for name, it in results["versions"].items()),
    }


def _tables(results: Mapping[str, Any]) -> dict[str, str]:
    classes = results["judge"]["sample_classes"]
    return {
        "parts": "\n".join(_part_rows(results["recipe"], results["pipeline"]["parameters"])),
        "stages": "\n".join(_stage_row(results, name) for name in results["stages"]),
        "distances": "\n".join(map(_distance_row, results["frechet_distance"])),
        "classes": "\n".join(f"| {name} | {share:.1%} |" for name, share in classes.items()),
    }


def _part_rows(recipe: Mapping[str, Any], parameters: Mapping[str, int]) -> list[str]:
    encoder, denoiser = recipe["autoencoder"], recipe["denoiser"]
    widths = [", ".join(map(str, part["block_out_channels"])) for part in (encoder, denoiser)]
    rows = (
        ("vqvae", "AutoencoderKL", f"channels {widths[0]}"),
        ("unet", "UNet2DModel", f"channels {widths[1]}, attention at the two coarser levels and the middle"),
        ("scheduler", "DDIMScheduler", "no weights"),
    )
    return [f"| `{name}` | `{kind}` | {text} | {parameters.get(name, 0):,} |" for name, kind, text in rows]


def _stage_row(results: Mapping[str, Any], name: str) -> str:
    stage, schedule = results["stages"][name], results["recipe"][f"{name}_schedule"]
    cells = (schedule["batch"], schedule["rate"], schedule["average"], stage["minutes"])
    return f"| {name} | {stage['steps']:,} | {' | '.join(map(str, cells))} |"


def _distance_row(row: Mapping[str, Any]) -> str:
    return f"| {MEANINGS[row['images']]} | {row['count']:,} | {row['distance']:.3f} |"
