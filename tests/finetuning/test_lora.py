"""A LoRA recovers a pruned network: only it is trained, and it is merged or left as an adapter."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.lora import add_lora_, own_weights_, share_weights_
from ldpruner.finetuning.trainer import Finetuning, finetune
from ldpruner.operators.discovery import Removal
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.recovery import finetune_run
from ldpruner.selection.plan import PlannedRemoval
from ldpruner.workflow import prune_run, score_run, select_run
from tests.families import FAMILIES
from tests.finetuning.conftest import PROBE, short

PLAN = ldpruner.Plan(
    component="unet",
    removed=(PlannedRemoval(removal=Removal(operator="mid_block.resnets.1", modification="identity")),),
)
PROMPTED = ldpruner.Probe(samples=4, steps=2, prompts=("a cat",))


def test_a_lora_is_trained_and_merged(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    network: Any = networks(pruned)["unet"]
    before = copy.deepcopy(network.state_dict())
    training = short(
        adapter="lora", rank=4, max_train_steps=30, learning_rate=1e-2, ema_decay=0.5, validation_steps=10
    )
    history = finetune(pruned, tiny, probe=PROBE, training=training)
    assert history.validation_losses[history.best_step] < 0.9 * history.validation_losses[0]
    after = network.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name, weight in before.items() if weight.ndim > 1}  # no norm, no bias
    assert not hasattr(network, "peft_config")


def assert_near(first: torch.Tensor, second: torch.Tensor) -> None:
    assert (first - second).norm() < 1e-3 * second.norm()


def test_a_lora_is_left_as_an_adapter_that_a_pruned_pipeline_loads(
    tiny_text: DiffusionPipeline, tmp_path: Path
) -> None:
    pruned = ldpruner.prune(tiny_text, PLAN)
    training = short(adapter="lora", rank=2, merge_adapter=False, learning_rate=1e-2)
    work = Finetuning(pruned, tiny_text, probe=PROMPTED, training=training)
    list(work)
    work.finish()
    adapted = sample_latents(pruned, PROMPTED, [0])
    assert (adapted - sample_latents(ldpruner.prune(tiny_text, PLAN), PROMPTED, [0])).norm() > 0.01 * adapted.norm()
    work.write_adapter(tmp_path)
    assert_near(sample_latents(pruned, PROMPTED, [0]), adapted)  # merged
    loaded: Any = ldpruner.prune(tiny_text, PLAN)
    loaded.load_lora_weights(tmp_path)
    assert_near(sample_latents(loaded, PROMPTED, [0]), adapted)


@pytest.mark.extensive
def test_a_run_keeps_the_adapter_beside_the_recovered_pipeline(folder: Path, tmp_path: Path) -> None:
    score_run(ldpruner.load(folder), run=tmp_path, probe=ldpruner.Probe(samples=2, steps=2), model=str(folder))
    select_run(tmp_path, ldpruner.Budget(parameters=0.8))
    prune_run(tmp_path)
    finetune_run(tmp_path, short(adapter="lora", rank=2, merge_adapter=False), probe=PROBE)
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").exists()
    assert not hasattr(ldpruner.load(tmp_path / "recovered").unet, "peft_config")


def test_frozen_weights_keep_their_precision() -> None:
    teacher = FAMILIES["flux"].pipeline().to(torch.bfloat16)
    student: Any = copy.deepcopy(teacher)
    probe = ldpruner.Probe(samples=4, steps=2, prompts=FAMILIES["flux"].prompts, call=dict(FAMILIES["flux"].call))
    work = Finetuning(student, teacher, probe=probe, training=short(adapter="lora", rank=2))
    dtypes = {weight.requires_grad: weight.dtype for weight in student.transformer.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    list(work)
    work.finish()
    assert {weight.dtype for weight in student.transformer.parameters()} == {torch.bfloat16}


def test_frozen_weights_share_the_storage_of_the_teachers(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    teacher, student = networks(tiny)["unet"], networks(pruned)["unet"]
    kept = sum(weight.nbytes for weight in student.parameters())
    assert share_weights_(student, teacher) == 0  # they would be trained
    add_lora_(student, 2, seed=0)
    assert share_weights_(student, teacher) == kept
    before = copy.deepcopy(teacher.state_dict())
    own_weights_(student, teacher)
    for weight in student.parameters():
        weight.data.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_a_network_with_an_adapter_of_its_own_is_refused(tiny_text: DiffusionPipeline) -> None:
    network: Any = copy.deepcopy(networks(tiny_text)["unet"])
    add_lora_(network, 2, seed=0)
    with pytest.raises(FinetuningError, match="already has the adapter 'recovery'; fuse or delete it"):
        add_lora_(network, 2, seed=0)
