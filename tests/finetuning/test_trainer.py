"""The training loop: it trains in place, goes on after a kill, and does the same in several processes."""

import copy
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning import History
from ldpruner.finetuning.accelerator import prepare_accelerator
from ldpruner.finetuning.trainer import Finetuning, Trainer, finetune
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.selection.plan import PlannedRemoval
from tests.families import FAMILIES
from tests.finetuning.conftest import PROBE, short, unet_weights

EVERY = 7  # steps between checkpoints where a run is killed

SCRIPT = """
import sys, torch, ldpruner
from ldpruner.finetuning import Training
from ldpruner.finetuning.trainer import Finetuning
torch.set_num_threads(1)
teacher, student = ldpruner.load(sys.argv[1]), ldpruner.load(sys.argv[1])
training = Training(**{settings})
work = Finetuning(student, teacher, probe=ldpruner.Probe(samples=8, steps=3), training=training, run=sys.argv[2])
for step in work:
    if work.is_first: print(step, flush=True)
history = work.finish()
if work.is_first: print(work.accelerator.num_processes, history.model_dump_json())
"""


def without_hours(history: History) -> History:
    return history.replace(hours={})


def test_training_changes_the_student_in_place_and_not_the_teacher(
    tiny: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    teacher, before = unet_weights(tiny), unet_weights(pruned)
    training = short(max_train_steps=30, train_batch_size=8, learning_rate=2e-3, ema_decay=0.5, validation_steps=10)
    history = finetune(pruned, tiny, probe=PROBE, training=training)
    assert history.steps == len(history.losses) == 30
    assert history.validation_losses[history.best_step] < 0.9 * history.validation_losses[0]
    assert all(torch.equal(weight, other) for weight, other in zip(teacher, unet_weights(tiny), strict=True))
    assert any(not torch.equal(weight, other) for weight, other in zip(before, unet_weights(pruned), strict=True))
    assert sample_latents(pruned, PROBE, [0]).isfinite().all()


def test_autoguidance_keeps_the_unfinetuned_student_as_the_weak_model(
    tiny: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    losses = {"task_loss_weight": 0.0, "feature_kd_weight": 0.0, "autoguidance_scale": 1.5}
    training = short(**losses, learning_rate=1e-3, ema_decay=0.0, timesteps="all")
    history = finetune(pruned, tiny, probe=PROBE, training=training)
    # if the weak model followed the student, the target would move away from it
    assert history.validation_losses[6] < history.validation_losses[0]


def test_a_step_runs_neither_autoencoder_nor_text_encoder(tiny_text: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(samples=4, steps=3, prompts=("a cat", "the moon"))
    work = Finetuning(copy.deepcopy(tiny_text), tiny_text, probe=probe, training=short())
    called: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: called.append(name))
        for name in ("vae", "text_encoder")
        for part in networks(tiny_text)[name].modules()
    ]
    assert len(work) == len(list(work)) == 6
    assert not called
    for handle in handles:
        handle.remove()


@pytest.mark.extensive
def test_the_same_call_goes_on_after_a_kill(folder: Path, tmp_path: Path) -> None:
    rhythm = {
        "max_train_steps": 60,
        "validation_steps": 20,
        "checkpointing_steps": EVERY,
        "early_stopping_patience": None,
    }
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", SCRIPT.format(settings=short(**rhythm).model_dump()), str(folder), str(killed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = next(number for number in map(int, process.stdout) if number >= 3 * EVERY)
        time.sleep(random.uniform(0, 0.05))  # somewhere in a step
        process.kill()
        reached = [reached, *map(int, process.stdout.read().split())][-1]
    histories = []
    for run in (whole, killed):
        work = Finetuning(ldpruner.load(folder), ldpruner.load(folder), probe=PROBE, training=short(**rhythm), run=run)
        first = next(iter(work))
        assert first == 1 if run == whole else first > reached // EVERY * EVERY > 0
        assert len(list(work)) == 60 - first
        histories.append(work.finish())
    assert without_hours(histories[0]) == without_hours(histories[1])


@pytest.mark.extensive
@pytest.mark.parametrize("settings", [{}, {"adapter": "lora", "rank": 2}], ids=["all", "lora"])
@pytest.mark.parametrize("launch", [{}, {"ACCELERATE_USE_FSDP": "true"}], ids=["data parallel", "fully sharded"])
def test_two_processes_train_as_one(
    folder: Path, tmp_path: Path, launch: dict[str, str], settings: dict[str, Any]
) -> None:
    """And go on where one process was killed."""
    training = short(max_train_steps=4, **settings)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(settings=training.model_dump()))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(script), str(folder), str(tmp_path / "run")]
    histories = []
    for _ in range(2):  # the second time from the last checkpoint
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **launch})
        assert done.returncode == 0, done.stderr
        count, _, line = done.stdout.strip().splitlines()[-1].partition(" ")
        assert count == "2"
        histories.append(History.model_validate_json(line))
    shared, again = histories
    assert again == shared
    single = finetune(ldpruner.load(folder), ldpruner.load(folder), probe=PROBE, training=training)
    np.testing.assert_allclose(shared.losses, single.losses, rtol=1e-4)
    assert shared.validation_losses == pytest.approx(single.validation_losses, rel=1e-4)


def test_gradient_accumulation_gives_the_same_losses(tiny: DiffusionPipeline) -> None:
    whole, parts = (
        finetune(copy.deepcopy(tiny), tiny, probe=PROBE, training=short(gradient_accumulation_steps=passes)).losses
        for passes in (1, 2)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-4)


def test_early_stopping_keeps_the_weights_from_before(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    settings = {"learning_rate": 0.5, "lr_warmup_steps": 0, "ema_decay": 0.0, "max_grad_norm": 100.0}
    training = short(**settings, max_train_steps=50, validation_steps=2, early_stopping_patience=2)
    before = unet_weights(fresh)
    history = finetune(fresh, tiny, probe=PROBE, training=training)
    assert (history.best_step, history.steps) == (0, 4)
    assert all(torch.equal(weight, other) for weight, other in zip(before, unet_weights(fresh), strict=True))


def test_a_loss_that_is_not_finite_stops_training(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    with torch.no_grad():
        next(networks(fresh)["unet"].parameters()).fill_(float("inf"))
    with pytest.raises(FinetuningError, match="loss is not finite"):
        finetune(fresh, tiny, probe=PROBE, training=short())


def test_half_precision_is_restored(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    networks(fresh)["unet"].to(torch.float16)
    training = short(mixed_precision="bf16", gradient_checkpointing=True)
    history = finetune(fresh, tiny, probe=PROBE, training=training)
    assert {weight.dtype for weight in unet_weights(fresh)} == {torch.float16}
    assert np.isfinite(history.losses).all()


class Notes(GeneralTracker):
    """A tracker that keeps what is logged."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.__dict__["tracker"] = self.values  # Accelerate asks for this attribute
        super().__init__()

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.settings = dict(values)

    def log(self, values: dict[str, float], step: int | None, **_: Any) -> None:
        self.values.append(values)


def test_trackers_get_every_step(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    notes = Notes()
    history = finetune(fresh, tiny, probe=PROBE, training=short(), report_to=[notes])
    assert notes.settings["train_batch_size"] == 4
    assert [values["loss"] for values in notes.values if "loss" in values] == list(history.losses)
    rates = [values["learning_rate"] for values in notes.values if "learning_rate" in values]
    assert rates[:3] == pytest.approx([0, 1.5e-4, 3e-4])


def regression(module: nn.Module, generator: torch.Generator) -> Iterator[Tensor]:
    """The loss of a network that shall return zeros."""
    yield module(torch.randn(4, 3, generator=generator)).square().mean()


def test_any_network_is_trained_and_without_validation_keeps_its_last_average(tmp_path: Path) -> None:
    training, module = short(max_train_steps=40, learning_rate=0.1), nn.Linear(3, 3)
    accelerator = prepare_accelerator(training, torch.device("cpu"))
    trainer = Trainer(module, regression, training, accelerator, checkpoint=tmp_path / "state.safetensors")
    steps = list(trainer)
    history = trainer.finish()
    assert steps == list(range(1, 41))
    assert (history.best_step, history.validation_losses) == (40, {})
    assert history.losses[-1] < 0.1 * history.losses[0]
    assert torch.equal(module.weight, trainer.state.ema.shadow_params[0])


@pytest.mark.case(number=44)
@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_a_lora_on_a_frozen_network_is_all_that_is_trained(tiny_text: DiffusionPipeline) -> None:
    student: Any = copy.deepcopy(tiny_text)
    student.unet.requires_grad_(False).add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    before = copy.deepcopy(student.unet.state_dict())
    finetune(student, tiny_text, probe=ldpruner.Probe(samples=4, steps=2, prompts=("a cat",)), training=short())
    after = student.unet.state_dict()
    changed = [name for name, weight in after.items() if not torch.equal(weight, before[name])]
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.case(number=40)
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("flux", marks=pytest.mark.extensive), "stable-diffusion-3"])
def test_a_transformer_without_a_block_is_trained_with_gradient_checkpointing(name: str) -> None:
    family = FAMILIES[name]
    original: Any = family.pipeline()
    source = ("encoder_hidden_states", "hidden_states")
    removal = Removal(operator="transformer_blocks.0", modification="identity", source=source)
    plan = ldpruner.Plan(removed=(PlannedRemoval(removal=removal),), component="transformer")
    probe = ldpruner.Probe(samples=2, steps=2, prompts=("a red cat",), call=dict(family.call))
    histories = [
        finetune(ldpruner.prune(original, plan), original, probe=probe, training=short(**settings))
        for settings in ({}, {"gradient_checkpointing": True})
    ]
    assert histories[0].losses == pytest.approx(histories[1].losses, rel=1e-3)
