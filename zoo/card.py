"""The model card of a zoo model: its text, curve and samples, all made from `results.json`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

TEXTS = Path(__file__).parent / "cards"

COLUMNS, SHOWN = 12, 72

MEANINGS = {
    "train": "random training images (a perfect model would reach this)",
    "reconstructions": "test images through the autoencoder and back (autoencoder bound)",
    "samples": "**samples of this model**",
    "colours": "test images, each as one flat colour, its mean",
    "noise": "uniform noise",
}


def write_card(results: Mapping[str, Any], folder: Path) -> None:
    """Writes `results.json`, `curve.png` and `README.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_curve(results["stages"], folder / "curve.png")
    (folder / "README.md").write_text(card_text(results))


def write_notice(model: str, folder: Path) -> None:
    """Copies the licence of the weights and the attribution of their data into a folder."""
    (folder / "NOTICE").write_text((TEXTS / f"{model}.notice.txt").read_text())


def write_samples(samples: Tensor, path: Path) -> None:
    """The first samples, not chosen, side by side: bytes, [samples, 3 or 1, height, width]."""
    shown = samples[: min(SHOWN, len(samples) // COLUMNS * COLUMNS)]
    _, channels, height, width = shown.shape
    rows = shown.reshape(-1, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    grid = rows.reshape(-1, COLUMNS * width, channels).numpy()
    Image.fromarray(grid.squeeze()).save(path, optimize=True)


def write_captioned(samples: Tensor, captions: Sequence[str], path: Path, rows: int = 8, columns: int = 9) -> None:
    """The first samples, not chosen, each above its caption: bytes, [samples, 3, height, width]."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # it chooses its window system when imported

    figure, grid = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.4 * rows), layout="constrained")
    for axis, picture, caption in zip(grid.flat, samples, captions, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy())
        axis.set_xlabel(textwrap.fill(caption, 20), fontsize=6)
        axis.set(xticks=[], yticks=[], frame_on=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_curve(stages: Mapping[str, Any], path: Path) -> None:
    """The loss of every stage over its steps."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # it chooses its window system when imported

    figure, axes = plt.subplots(1, len(stages), figsize=(2.8 * len(stages), 3), layout="constrained")
    for axis, (name, stage) in zip(axes, stages.items(), strict=True):
        losses = stage["loss_per_50_steps"]
        axis.plot([min(50 * (place + 1), stage["steps"]) for place in range(len(losses))], losses)
        axis.set(title=name.replace("_", " "), xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def card_text(results: Mapping[str, Any]) -> str:
    """The model card, in Markdown: the model's own text with the numbers of `results.json`."""
    template = (TEXTS / f"{results['model']}.md").read_text()
    return template.format(**_settings(results["recipe"]), **_numbers(results), **_tables(results))


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe: its plain numbers by name, and the settings of its networks."""
    denoiser, scheduler = recipe["denoiser"], recipe["scheduler"]
    side, channels = denoiser["sample_size"], denoiser["in_channels"]
    return {
        **{key: value for key, value in recipe.items() if isinstance(value, str | int | float)},
        "text_encoder": recipe.get("text_encoder"),
        **{key: scheduler[key] for key in ("beta_schedule", "beta_start", "beta_end")},
        "autoencoder_channels": ", ".join(map(str, recipe["autoencoder"]["block_out_channels"])),
        "denoiser_channels": ", ".join(map(str, denoiser["block_out_channels"])),
        "levels": scheduler["num_train_timesteps"],
        "latent": f"{side}x{side}x{channels}",
        "latent_size": side * side * channels,
        "shown": SHOWN,
        "last_shown": SHOWN - 1,
    }


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    network, pipeline = results["feature_network"], results["pipeline"]
    return {
        **{key: value for key, value in network.items() if isinstance(value, int | float)},
        **results["machine"],
        "network_parameters": network["parameters"],
        "network_features": network["features"],
        "parameters": pipeline["parameters"],
        "scale": pipeline["scaling_factor"],
        "megabytes": pipeline["bytes"] / 1e6,
        "train_count": results["images"]["train"],
        "test_count": results["images"]["test"],
        "chance_at_1": 1 / results["images"]["test"],
        "chance_at_5": 5 / results["images"]["test"],
        "minutes": sum(stage["minutes"] for stage in results["stages"].values()),
        "signal_to_noise": results["autoencoder"]["peak_signal_to_noise_db"],
        "versions": ", ".join(f"{name} {number}" for name, number in results["versions"].items()),
    }


def _tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The rows of each table that the card of this model has."""
    network = results["feature_network"]
    classes, retrieval = network.get("sample_classes", {}), network.get("retrieval", [])
    return {
        "stages": "\n".join(_stage_row(results, name) for name in results["stages"]),
        "distances": "\n".join(map(_distance_row, results["frechet_distance"])),
        "classes": "\n".join(f"| {name} | {share:.1%} |" for name, share in classes.items()),
        "retrieval": "\n".join(map(_retrieval_row, retrieval)),
    }


def _stage_row(results: Mapping[str, Any], name: str) -> str:
    stage, training = results["stages"][name], results["recipe"][f"{name}_training"]
    cells = (training["train_batch_size"], training["learning_rate"], training["ema_decay"], stage["minutes"])
    return f"| {name.replace('_', ' ')} | {stage['steps']:,} | {' | '.join(map(str, cells))} |"


def _distance_row(row: Mapping[str, Any]) -> str:
    return f"| {MEANINGS[row['images']]} | {row['count']:,} | {row['distance']:.3f} |"


def _retrieval_row(row: Mapping[str, Any]) -> str:
    shares = " | ".join(f"{row[key]:.1%}" for key in ("R@1", "R@5", "style_accuracy"))
    return f"| {row['captions']} | {row['pictures']} | {row['count']:,} | {shares} |"
