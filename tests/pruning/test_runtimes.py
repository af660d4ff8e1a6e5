"""Other programs know a saved network by the names of its weights: those of a plain network with fewer blocks."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

import ldpruner
from tests.families import FAMILIES
from tests.pruning.test_conversion import plan_of

# Whole blocks of a family, and the count in the configuration that stands for each list of blocks.
FAMILIES_READ_BY_NAME: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "flux": (
        ("transformer_blocks.0", "single_transformer_blocks.1"),
        {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"},
    ),
    "stable-diffusion-3": (("transformer_blocks.0",), {"transformer_blocks": "num_layers"}),
    "wan": (("blocks.0",), {"blocks": "num_layers"}),
    "qwen-image": (("transformer_blocks.0",), {"transformer_blocks": "num_layers"}),
}
each_family = pytest.mark.parametrize("name", FAMILIES_READ_BY_NAME)


def saved(name: str, folder: Path) -> Path:
    """The folder of the family's transformer, after its blocks were removed and it was saved."""
    family = FAMILIES[name]
    pipeline = family.pipeline()
    ldpruner.save(ldpruner.prune(pipeline, plan_of(family, pipeline, FAMILIES_READ_BY_NAME[name][0])), folder)
    return folder / "transformer"


def weight_names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as weights:
        return set(weights.keys())


def block_numbers(names: set[str]) -> dict[str, set[int]]:
    """The numbers that follow the first part of the names, for each list of blocks."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        blocks, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if number.isdecimal():
            numbers[blocks].add(int(number))
    return dict(numbers)


def plain_class(configuration: dict[str, Any]) -> Any:
    return getattr(diffusers, configuration["_class_name"])


@each_family
def test_a_program_that_counts_blocks_by_their_names_counts_those_of_the_configuration(
    name: str, tmp_path: Path
) -> None:
    folder = saved(name, tmp_path / "pruned")
    configuration = json.loads((folder / "config.json").read_text())
    names = weight_names(folder / "diffusion_pytorch_model.safetensors")
    expected = {blocks: set(range(configuration[count])) for blocks, count in FAMILIES_READ_BY_NAME[name][1].items()}
    assert block_numbers(names) == expected
    assert "removals" not in configuration  # no stand-ins
    with torch.device("meta"):
        plain = plain_class(configuration).from_config(configuration)
    assert names == set(plain.state_dict())


@each_family
def test_diffusers_opens_the_single_file_with_the_configuration_beside_it(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "pruned")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pruned")
    expected = FAMILIES[name].sample(pipeline)
    opened = type(pipeline.transformer).from_single_file(
        str(folder / "diffusion_pytorch_model.safetensors"), config=str(tmp_path / "pruned"), subfolder="transformer"
    )
    pipeline.register_modules(transformer=opened)
    assert torch.equal(FAMILIES[name].sample(pipeline), expected)


def test_shards_become_the_one_file_that_other_programs_read(tmp_path: Path) -> None:
    folder = saved("flux", tmp_path / "pruned")
    network = ldpruner.load(tmp_path / "pruned").transformer
    network.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    network = diffusers.AutoModel.from_pretrained(str(tmp_path / "shards"))
    network.save_pretrained(tmp_path / "one", max_shard_size="100GB")
    (file,) = (tmp_path / "one").glob("*.safetensors")
    assert weight_names(file) == weight_names(folder / "diffusion_pytorch_model.safetensors")
