"""The original's own calls as examples, for pipelines whose denoiser cannot be called with other latents."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner.errors import FinetuningError
from ldpruner.finetuning.distillation import prepare_distillation
from ldpruner.finetuning.recorded_calls import CALLS_PER_SAMPLE, RecordedCalls
from ldpruner.finetuning.trainer import finetune
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES
from tests.finetuning.conftest import short

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
FAMILY = FAMILIES["z-image"]  # gives its denoiser lists of tensors
PROBE = ldpruner.Probe(samples=3, steps=4, prompts=FAMILY.prompts, call=dict(FAMILY.call))


def test_calls_are_kept_as_they_were_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = FAMILY.pipeline()
    inputs: list[torch.Tensor] = []
    hook = networks(pipeline)["transformer"].register_forward_pre_hook(
        lambda _, args: inputs.append(args[0][0].clone())
    )
    sample_latents(pipeline, PROBE, [1])
    hook.remove()
    first = prepare_distillation(pipeline, None, PROBE, None, tmp_path)
    assert "no latents and timestep" in caplog.text
    assert isinstance(first.examples, RecordedCalls)
    assert len(first.examples) == PROBE.samples * CALLS_PER_SAMPLE
    kept = [first.examples.batch(torch.tensor([i]), torch.tensor([0]))[1][0]["x"][0] for i in range(4, 8)]
    assert all(any(torch.equal(tensor, other) for other in inputs) for tensor in kept)

    paths = sorted(tmp_path.glob("examples/*/*"))
    damaged, stamps = paths[5], [path.stat().st_mtime_ns for path in paths]
    contents = damaged.read_bytes()
    damaged.unlink()  # not written in place: it is memory-mapped
    damaged.write_bytes(contents[:-1])
    prepare_distillation(pipeline, None, PROBE, None, tmp_path)
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(paths, stamps, strict=True)] == [
        *[True] * 4,
        *[False] * 4,
        *[True] * 4,
    ]
    assert damaged.read_bytes() == contents


def test_a_student_learns_the_originals_output(tmp_path: Path) -> None:
    family = FAMILIES["consistency"]  # its noise schedule is not known
    pipeline, student = family.pipeline(), family.pipeline()
    with torch.no_grad():
        for weight in networks(student)["unet"].parameters():
            weight.mul_(0.9)
    settings = {"max_train_steps": 12, "validation_steps": 12, "learning_rate": 1e-3, "ema_decay": 0.1}
    training = short(task_loss_weight=None, lr_warmup_steps=0, **settings)
    probe = ldpruner.Probe(samples=4, steps=2)
    losses = finetune(student, pipeline, probe=probe, training=training, run=tmp_path).validation_losses
    assert losses[12] < 0.95 * losses[0]


def test_the_task_is_not_known() -> None:
    with pytest.raises(FinetuningError, match="neither a task nor noise levels"):
        finetune(FAMILY.pipeline(), FAMILY.pipeline(), probe=PROBE, training=short(task_loss_weight=1.0))


def test_a_few_step_model_learns_at_its_own_timesteps_by_itself(
    tiny: DiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    training = short(task_loss_weight=None)
    probe = ldpruner.Probe(samples=4, steps=2)
    scheduler = copy.deepcopy(tiny.scheduler)
    scheduler.set_timesteps(2)
    own = {int(time) for time in scheduler.timesteps}
    seen: set[int] = set()

    def record(_: Any, args: Any, kwargs: Any) -> None:
        seen.update(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten().tolist())

    student = copy.deepcopy(tiny)
    with student.unet.register_forward_pre_hook(record, with_kwargs=True):
        finetune(student, tiny, probe=probe, training=training)
    assert seen == own
    assert "2 steps are those of a few-step model" in caplog.text
    with pytest.raises(FinetuningError, match="not from data; leave out the data"):
        prepare_distillation(tiny, [], probe, None, None, "pipeline")
