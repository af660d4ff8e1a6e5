"""What does a recovery by LoRA take? Counted on the meta device, and measured at a tenth of the size.

    python -m benchmarks.training_memory

The network is Flux with 12 of its 19 double and 25 of its 38 single blocks: 65 % of its parameters. A step is forward,
backward and AdamW on one sample. At a tenth of the size (a third of the width) the same count is compared with the
memory that a process takes beyond its imports.
"""

import argparse
import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.records import RESULTS, cell, markdown, read
from benchmarks.stacking import resident
from ldpruner.finetuning.lora import add_lora_
from ldpruner.finetuning.memory import TrainingMemory, training_memory

STUDY = "training_memory"
RANK = 32
BLOCKS = {"num_layers": 12, "num_single_layers": 25}
SIZES: dict[str, dict[str, Any]] = {
    "Flux at 65 %": {"width": 24, "tokens": 4096, "texts": 512, "dtype": "bfloat16"},
    "a tenth": {"width": 8, "tokens": 512, "texts": 64, "dtype": "float32"},
}
SMALL = {"width": 1, "tokens": 64, "texts": 8, "dtype": "float32"}
KINDS = ("full", "lora", "lora, checkpointing")


def main() -> None:
    """Counts and measures what is missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        sys.stdout.write(json.dumps(_peak(options.peak_of)) + "\n")
        return
    for size in SIZES:
        for training in KINDS:
            settings = {"size": size, "training": training, "rank": RANK, **SIZES[size]}
            cell(STUDY, settings, functools.partial(_counted, size, training), options.results)


def _counted(size: str, training: str) -> dict[str, Any]:
    result: dict[str, Any] = _step(size, training, "meta").model_dump()
    if size == "a tenth" and "lora" in training:  # all weights would take 13 GB
        words = ["-m", "benchmarks.training_memory", "--peak-of", training]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, env=environment)
        result["measured"] = int(json.loads(done.stdout.splitlines()[-1]))
    return result


def _step(size: str, training: str, device: str) -> TrainingMemory:
    settings = SIZES.get(size, SMALL)
    dtype, heads = getattr(torch, settings["dtype"]), settings["width"]
    with torch.device(device):
        network: Any = FluxTransformer2DModel(**BLOCKS, num_attention_heads=heads).to(dtype)
        inputs = _inputs(settings["tokens"], settings["texts"], dtype)
    if "lora" in training:
        add_lora_(network, RANK, seed=0)
    if "checkpointing" in training:
        network.enable_gradient_checkpointing()
    trained = [weight for weight in network.train().parameters() if weight.requires_grad]
    for weight in trained:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def loss() -> Tensor:
        with torch.autocast("cpu" if device == "meta" else device, dtype, enabled=dtype != torch.float32):
            output: Tensor = network(**inputs)[0]
        return output.float().square().mean()

    return training_memory(network, optimizer, loss, list(inputs.values()))


def _inputs(tokens: int, texts: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the pipeline gives for one sample."""
    return {
        "hidden_states": torch.ones(1, tokens, 64, dtype=dtype),
        "encoder_hidden_states": torch.ones(1, texts, 4096, dtype=dtype),
        "pooled_projections": torch.ones(1, 768, dtype=dtype),
        "timestep": torch.ones(1, dtype=dtype),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(texts, 3),
    }


def _peak(training: str) -> int:
    """The most bytes of this process, beyond those before the network was made."""
    _step("small", training, "cpu")  # loads the kernels
    before = resident("VmRSS")
    _step("a tenth", training, "cpu")
    return resident("VmHWM") - before


# Tables


def table() -> Iterator[str]:
    """A row for each size and training."""
    head = ["network", "training", "weights", "gradients", "optimizer", "activations", "counted", "measured"]
    yield from markdown(head, [_row(record["settings"], record["result"]) for record in read(STUDY)])


def _row(settings: dict[str, Any], result: dict[str, Any]) -> list[str]:
    parts = (result[name] for name in ("weights", "gradients", "optimizer", "activations", "peak"))
    measured = f"{result['measured'] / 2**30:.2f} GiB" if "measured" in result else ""
    return [settings["size"], settings["training"], *(f"{part / 2**30:.2f} GiB" for part in parts), measured]


if __name__ == "__main__":
    main()
