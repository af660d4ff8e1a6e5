"""Examples: latents with their conditions, kept on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.dataset import open_data
from ldpruner.finetuning.distillation import prepare_distillation
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES
from tests.families.parts import PROMPTS
from tests.finetuning.conftest import PROBE


def test_the_teachers_samples_are_read_again_and_damaged_ones_made_again(
    tiny: DiffusionPipeline, tmp_path: Path
) -> None:
    first = prepare_distillation(tiny, None, PROBE, None, tmp_path).examples
    indices = torch.tensor([5, 0])
    latents, _ = first.batch(indices, torch.zeros_like(indices))
    torch.testing.assert_close(latents, sample_latents(tiny, PROBE, [5, 0]))
    (chunk,) = tmp_path.glob("examples/*/*.safetensors")
    written = chunk.stat().st_mtime_ns
    assert prepare_distillation(tiny, None, PROBE, None, tmp_path).examples.digest == first.digest
    assert chunk.stat().st_mtime_ns == written
    chunk.unlink()
    chunk.write_bytes(b"PK\x03\x04")
    again, _ = prepare_distillation(tiny, None, PROBE, None, tmp_path).examples.batch(
        indices, torch.zeros_like(indices)
    )
    assert torch.equal(again, latents)


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_encoded_with_their_captions(tiny_text: DiffusionPipeline, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with (tmp_path / "metadata.jsonl").open("w") as metadata:
        for index in range(6):
            name, caption = f"{index}.png", ("a cat", "the moon")[index % 2]
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / name)
            metadata.write(json.dumps({"file_name": name, "text": caption}) + "\n")
    examples = prepare_distillation(tiny_text, open_data(tmp_path), PROBE, None, tmp_path / "run").examples
    (text,) = [chunk["conditions.0"] for chunk in examples.chunks]
    assert (len(examples), *examples.shape) == (6, 4, 8, 8)
    assert text.shape[:2] == (6, 2)
    assert torch.equal(text[0], text[2])
    assert not torch.equal(text[0, 1], text[1, 1])  # captions
    assert torch.equal(text[0, 0], text[1, 0])  # the empty caption
    assert len(list(tmp_path.glob("run/examples/*/*.safetensors"))) == 1


@pytest.mark.filterwarnings("ignore")
def test_guidance_in_separate_calls_gives_both_conditions() -> None:
    family = FAMILIES["wan"]
    probe = ldpruner.Probe(samples=4, steps=3, prompts=PROMPTS, call=dict(family.call))
    distillation = prepare_distillation(family.pipeline(), None, probe, None, None)
    (text,) = [chunk["conditions.0"] for chunk in distillation.examples.chunks]
    assert distillation.copies == text.shape[1] == 2
    assert not torch.equal(text[0, 0], text[0, 1])
    assert torch.equal(text[0, 1], text[1, 1])
    torch.testing.assert_close(distillation.copy_shares, torch.tensor([0.8, 0.2]))


def test_data_without_rows_is_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(FinetuningError, match="holds no example"):
        prepare_distillation(tiny, [], PROBE, None, None)
