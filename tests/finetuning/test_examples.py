"""Examples: latents with their conditions, kept on disk."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.conditioning import CallSignature
from ldpruner.finetuning.dataset import open_data
from ldpruner.finetuning.distillation import Distillation, prepare_distillation
from ldpruner.finetuning.examples import Examples, Source
from ldpruner.finetuning.recorded_calls import RecordedCalls
from ldpruner.finetuning.state import write_tensors
from ldpruner.finetuning.steps import record_until
from ldpruner.finetuning.trainer import finetune
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES
from tests.families.parts import PROMPTS
from tests.finetuning.conftest import PROBE, short


def conditions_of(examples: Examples | RecordedCalls) -> Tensor:
    """[examples, copies, rows, ...] the conditions of the only argument that holds some."""
    assert isinstance(examples, Examples)
    indices = torch.arange(len(examples))
    copies = examples.conditions[0].digests[0].shape[1]
    return torch.stack([examples.batch(indices, torch.full_like(indices, copy))[1][0] for copy in range(copies)], 1)


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
    text = conditions_of(examples)
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
    text = conditions_of(distillation.examples)
    assert distillation.copies == text.shape[1] == 2
    assert not torch.equal(text[0, 0], text[0, 1])
    assert torch.equal(text[0, 1], text[1, 1])
    torch.testing.assert_close(distillation.copy_shares, torch.tensor([0.8, 0.2]))


def test_data_without_rows_is_refused(tiny: DiffusionPipeline) -> None:
    with pytest.raises(FinetuningError, match="holds no example"):
        prepare_distillation(tiny, [], PROBE, None, None)


def full_conditions(distillation: Distillation, teacher: DiffusionPipeline, probe: ldpruner.Probe) -> list[Tensor]:
    """[examples, copies, rows, ...] of each argument, computed in batches of 16 and without a cache."""
    signature, batches = distillation.call_signature, torch.arange(probe.samples).split(16)
    assert isinstance(signature, CallSignature)
    parts = []
    for batch in batches:
        calls = record_until(teacher, distillation.component, probe.arguments(teacher, batch.tolist()))
        parts.append(signature.conditions(calls, len(batch)))
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


@dataclass(frozen=True)
class FullExamples(Examples):
    """Examples that hold the conditions of each one, as they come from the pipeline."""

    full: tuple[Tensor, ...] = ()

    def batch(self, indices: Tensor, copies: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().batch(indices, copies)[0], [tensor[indices, copies] for tensor in self.full]


@pytest.mark.case(name="conditions-once")
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_samples_of_three_prompts_keep_four_embeddings_and_train_as_before(
    tiny_text: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = ldpruner.Probe(samples=100, steps=2, prompts=PROMPTS[:3])
    distillation = prepare_distillation(tiny_text, None, probe, None, tmp_path)
    examples, full = distillation.examples, full_conditions(distillation, tiny_text, probe)
    assert isinstance(examples, Examples)
    assert sum(len(part) for part in examples.conditions[0].parts) == 4
    assert torch.equal(conditions_of(examples), full[0])
    files = list(tmp_path.glob("examples/*/*.safetensors"))
    size, latents = sum(path.stat().st_size for path in files), sum(part.nbytes for part in examples.latents)
    assert size - latents < 16 * 2 * 100 + 4 * full[0][0, 0].nbytes + 1000 * len(files)  # digests, embeddings, headers

    training = short(max_train_steps=3)
    history = finetune(copy.deepcopy(tiny_text), tiny_text, probe=probe, training=training, run=tmp_path)
    reference = FullExamples(examples.latents, examples.conditions, examples.digest, tuple(full))
    monkeypatch.setattr(Source, "examples", lambda *_: reference)
    assert finetune(copy.deepcopy(tiny_text), tiny_text, probe=probe, training=training).losses == history.losses


@pytest.mark.filterwarnings("ignore")
def test_a_chunk_that_is_damaged_or_of_an_earlier_version_is_made_again(
    tiny_text: DiffusionPipeline, tmp_path: Path
) -> None:
    probe = ldpruner.Probe(samples=70, steps=2, prompts=PROMPTS[:3])
    before = prepare_distillation(tiny_text, None, probe, None, tmp_path).examples
    assert isinstance(before, Examples)
    first, second = sorted(tmp_path.glob("examples/*/*.safetensors"))
    written = second.stat().st_mtime_ns
    first.write_bytes(first.read_bytes()[:-1])
    again = prepare_distillation(tiny_text, None, probe, None, tmp_path).examples
    assert torch.equal(conditions_of(again), conditions_of(before))
    assert second.stat().st_mtime_ns == written
    first.unlink()
    write_tensors(first, {"latents": before.latents[0]})  # as if an earlier version had written it
    assert torch.equal(
        conditions_of(prepare_distillation(tiny_text, None, probe, None, tmp_path).examples), conditions_of(before)
    )
