"""A teacher that is offloaded, or whose outputs are cached, teaches the same."""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ldpruner.finetuning.teacher import OutputCache
from ldpruner.finetuning.trainer import Finetuning, finetune
from ldpruner.pipelines.sampling import sample_latents
from tests.finetuning.conftest import PROBE, short


def test_wherever_the_teacher_is_the_losses_are_the_same(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    settings: dict[str, Any] = {"feature_kd_weight": 0.0, "autoguidance_scale": 0.5}
    settings["gradient_accumulation_steps"] = 2
    before = sample_latents(tiny, PROBE, [0])
    resident, *others = (
        finetune(copy.deepcopy(fresh), tiny, probe=PROBE, training=short(**settings, teacher=place))
        for place in ("resident", "offloaded", "cached")
    )
    assert all(history.replace(hours=resident.hours) == resident for history in others)
    assert torch.equal(sample_latents(tiny, PROBE, [0]), before)
    assert not any({"forward", "_diffusers_hook"} & vars(module).keys() for module in tiny.unet.modules())


def test_an_offloaded_teacher_is_offloaded_while_it_samples_and_is_then_as_before(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline
) -> None:
    seen: list[bool] = []
    with tiny.unet.register_forward_hook(lambda module, *_: seen.append(hasattr(module, "_diffusers_hook"))):
        work = Finetuning(fresh, tiny, probe=PROBE, training=short(teacher="offloaded"))
        assert seen
        assert all(seen)
        list(work)
        work.finish()
    assert not hasattr(tiny.unet, "_diffusers_hook")


def test_cached_outputs_survive_a_kill_and_go_at_the_end(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline, tmp_path: Path
) -> None:
    training = short(teacher="cached")
    killed = Finetuning(copy.deepcopy(fresh), tiny, probe=PROBE, training=training, run=tmp_path)
    next(iter(killed))
    calls: list[Any] = []
    with tiny.unet.register_forward_hook(lambda *_: calls.append(1)):
        resumed = Finetuning(copy.deepcopy(fresh), tiny, probe=PROBE, training=training, run=tmp_path)
        count = len(calls)
        list(resumed)
    resumed.finish()
    assert len(calls) == count  # the cache gave everything
    assert not list(tmp_path.glob("finetuning/outputs/*"))


def test_damaged_outputs_are_computed_again(tmp_path: Path) -> None:
    cache = OutputCache(tmp_path)
    assert torch.equal(cache.get("a", lambda: torch.ones(2)), torch.ones(2))
    assert torch.equal(cache.get("a", lambda: torch.zeros(2)), torch.ones(2))
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    assert torch.equal(cache.get("a", lambda: torch.zeros(2)), torch.zeros(2))
