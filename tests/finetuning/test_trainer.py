"""Finetuning: what it learns from, what it learns, and that nothing it did is lost."""

import copy
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils import _pytree as pytree

import ldpruner
from ldpruner.errors import FinetuningError, LdPrunerError
from ldpruner.evaluation.media import read_picture
from ldpruner.finetuning import Finetuning, Training, finetune
from ldpruner.finetuning.conditioning import named_arguments, watch_call_signature
from ldpruner.finetuning.distillation import prepare_distillation
from ldpruner.finetuning.encoding import find_encoder
from ldpruner.finetuning.losses import features_of, stages
from ldpruner.finetuning.objectives import objective_of
from ldpruner.finetuning.state import State
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.running import networks
from ldpruner.pipelines.sampling import draw_latents
from tests.families import FAMILIES
from tests.families.parts import PROMPTS

SHORT = Training(
    max_train_steps=6,
    train_batch_size=4,
    task_loss_weight=1.0,
    lr_warmup_steps=2,
    validation_steps=3,
    checkpointing_steps=2,
)
PROBE = ldpruner.Probe(samples=8, steps=3)
EVERY = 7  # steps there is a checkpoint, where a run is killed

# Every way in which a pipeline gives its denoiser more than latents and noise levels.
CALLED = (
    *(
        "stable-diffusion",
        "stable-diffusion-pndm",
        "stable-diffusion-euler",
        "stable-diffusion-xl",
        "instruct-pix2pix",
    ),
    *("stable-diffusion-inpaint", "ldm", "audio-diffusion", "animatediff", "cogvideox"),
    *("dit", "pixart-alpha", "stable-diffusion-3", "flux", "sana", "hunyuan-dit", "wan", "ltx", "lumina2"),
)
# What cannot be finetuned says so in one line.
REFUSED = {
    "stable-diffusion-controlnet": "change from step to step",
    "wan-two-denoisers-2": "two denoisers",
    "stable-cascade": "objective that is not known",
    "consistency": "objective that is not known",
    "latent-upscaler": "noise levels of its own",
    "text-to-video": "for latents",
    "amused": "no latents and timestep",
    "qwen-image": "lists that grow",
}


@pytest.fixture
def pruned(tiny: DiffusionPipeline, scores: ldpruner.Scores) -> DiffusionPipeline:
    return ldpruner.prune(tiny, ldpruner.select(scores, ldpruner.Budget(parameters=0.6)))


def weights(pipeline: DiffusionPipeline) -> list[Tensor]:
    return [weight.detach().clone() for weight in networks(pipeline)["unet"].parameters()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLED)
def test_a_call_is_repeated_as_the_pipeline_makes_it(name: str) -> None:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = ldpruner.Probe(samples=3, steps=3, prompts=PROMPTS, call=dict(family.call))
    denoiser = find_denoiser(pipeline, family.component, probe.arguments(pipeline, [0]))
    conditions = watch_call_signature(pipeline, denoiser.component, probe, batches=True)
    recorded = named_arguments(find_denoiser(pipeline, denoiser.component, probe.arguments(pipeline, [1, 2])))
    whole = recorded[conditions.sample]
    for place in range(conditions.copies):
        rows = slice(2 * place, 2 * place + 2)
        latents = (
            whole[rows]
            if conditions.appended is None
            else whole[rows].narrow(conditions.appended, 0, conditions.latents[conditions.appended - 1])
        )
        given = [one[:, place] for one in conditions.of([recorded], 2)]
        level = (float(torch.as_tensor(recorded[conditions.time]).flatten()[0]) - conditions.shift) / conditions.scale
        again = conditions.arguments(latents, torch.full((2,), level), given)
        assert again.keys() == recorded.keys()
        torch.testing.assert_close(again[conditions.sample], whole[rows])
        for one, other in zip(pytree.tree_leaves(again), pytree.tree_leaves(recorded), strict=True):
            if isinstance(one, Tensor) and other.ndim and len(other) == len(whole):
                torch.testing.assert_close(one, other[rows].to(one.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_cannot_be_finetuned_says_so_in_one_line(name: str) -> None:
    family = FAMILIES[name]
    probe = ldpruner.Probe(samples=4, steps=3, prompts=PROMPTS, call=dict(family.call))
    with pytest.raises(FinetuningError, match=REFUSED[name]) as caught:
        Finetuning(family.pipeline(), family.pipeline(), probe=probe, component=family.component)
    assert "\n" not in str(caught.value)


def test_it_learns_in_place_and_leaves_the_teacher_alone(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    teacher, before = weights(tiny), weights(pruned)
    history = finetune(
        pruned,
        tiny,
        probe=PROBE,
        training=Training(
            max_train_steps=40, train_batch_size=8, learning_rate=2e-3, lr_warmup_steps=2, ema_decay=0.5
        ),
    )
    assert history.steps == len(history.losses) == 40
    assert history.validation_losses[history.best_step] < 0.9 * history.validation_losses[0]
    assert all(torch.equal(one, other) for one, other in zip(teacher, weights(tiny), strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(before, weights(pruned), strict=True))
    assert draw_latents(pruned, PROBE, [0]).isfinite().all()


def test_autoguidance_leads_beyond_the_teacher_away_from_the_pruned_network_as_it_came(
    tiny: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    usual = SHORT.model_copy(
        update={"task_loss_weight": 0.0, "feature_kd_weight": 0.0, "learning_rate": 1e-3, "ema_decay": 0.0}
    )
    found = [
        finetune(
            copy.deepcopy(pruned), tiny, probe=PROBE, training=usual.model_copy(update={"autoguidance": strength})
        ).validation_losses
        for strength in (0.0, 1.5)
    ]
    assert found[1][0] == pytest.approx((1 + 1.5) ** 2 * found[0][0], rel=1e-4)
    # once trained it has left where it came from, which does not move with it
    assert found[1][6] < found[1][0]
    assert found[1][6] > found[0][6]


def test_autoguidance_leads_at_some_noise_levels_only(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    usual = SHORT.model_copy(update={"task_loss_weight": 0.0, "feature_kd_weight": 0.0, "autoguidance_scale": 1.5})
    losses = [
        finetune(
            copy.deepcopy(pruned), tiny, probe=PROBE, training=usual.model_copy(update=between)
        ).validation_losses[0]
        for between in (
            {"autoguidance_scale": 0.0},
            {},
            {"guidance_interval": (0.0, 0.3)},
            {"guidance_interval": (0.3, 1.0)},
        )
    ]
    plain, whole, low, high = losses
    assert plain < low < whole
    assert plain < high < whole
    assert low + high == pytest.approx(plain + whole)


def test_a_step_runs_neither_autoencoder_nor_text_encoder(tiny_text: DiffusionPipeline) -> None:
    probe = ldpruner.Probe(samples=4, steps=3, prompts=("a cat", "the moon"))
    work = Finetuning(copy.deepcopy(tiny_text), tiny_text, probe=probe, training=SHORT)
    called: list[str] = []
    for name in ("vae", "text_encoder"):
        for part in networks(tiny_text)[name].modules():
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    assert len(list(work)) == SHORT.max_train_steps
    assert not called


def test_the_same_command_goes_on_after_each_kill(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch, ldpruner; from ldpruner.finetuning import Finetuning, Training\n"
        "torch.set_num_threads(1)\n"
        "teacher, student = ldpruner.load(sys.argv[1]), ldpruner.load(sys.argv[1])\n"
        f"rhythm = {{'validation_steps': 20, 'checkpointing_steps': {EVERY}, 'early_stopping_patience': None}}\n"
        "short = {'max_train_steps': 60, 'train_batch_size': 4, 'task_loss_weight': 1.0, 'lr_warmup_steps': 2}\n"
        "training = Training(**short, **rhythm)\n"
        "probe = ldpruner.Probe(samples=8, steps=3)\n"
        "work = Finetuning(student, teacher, probe=probe, training=training, run=sys.argv[2])\n"
        "for step in work: print(step, flush=True)\n"
        "print(work.finish().model_dump_json())\n"
    )

    def start(run: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / run)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    whole, reached = start("whole").communicate()[0].splitlines(), 0
    for step in (2, 24, 46):  # before there is a checkpoint, and later
        with start("killed") as process:
            assert process.stdout is not None
            began = int(process.stdout.readline())
            assert began > reached // EVERY * EVERY  # at most the steps since the last checkpoint are made again
            reached = next(number for number in map(int, process.stdout) if number >= step)
            time.sleep(random.uniform(0, 0.05))  # somewhere in a step
            process.kill()
            reached = [reached, *map(int, process.stdout.read().split())][-1]
    again = start("killed").communicate()[0].splitlines()
    assert int(again[0]) > reached // EVERY * EVERY > 0
    assert json.loads(again[-1]) == json.loads(whole[-1])


def test_two_processes_learn_as_one(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch, ldpruner; from ldpruner.finetuning import Finetuning, Training\n"
        "torch.set_num_threads(1)\n"
        "teacher, student = ldpruner.load(sys.argv[1]), ldpruner.load(sys.argv[1])\n"
        "short = {'max_train_steps': 5, 'train_batch_size': 4, 'task_loss_weight': 1.0, 'lr_warmup_steps': 2}\n"
        "training = Training(**short, validation_steps=5)\n"
        "probe = ldpruner.Probe(samples=8, steps=3)\n"
        "work = Finetuning(student, teacher, probe=probe, training=training, run=sys.argv[2])\n"
        "for step in work: pass\n"
        "history = work.finish()\n"
        "if work.is_first: print(work.accelerator.num_processes, history.model_dump_json())\n"
    )
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = {}
    for launcher in ([], several):
        run = tmp_path / f"run{len(launcher)}"
        command = [sys.executable, *launcher, str(script), str(folder), str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        count, _, history = done.stdout.strip().splitlines()[-1].partition(" ")
        found[int(count)] = json.loads(history)
    np.testing.assert_allclose(found[2]["losses"], found[1]["losses"], rtol=1e-4)
    np.testing.assert_allclose(
        list(found[2]["validation_losses"].values()), list(found[1]["validation_losses"].values()), rtol=1e-4
    )


def test_a_batch_in_several_passes_is_the_same_batch(tiny: DiffusionPipeline) -> None:
    found = [
        finetune(copy.deepcopy(tiny), tiny, probe=PROBE, training=training)
        for training in (SHORT, SHORT.model_copy(update={"gradient_accumulation_steps": 2}))
    ]
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-4)
    with pytest.raises(FinetuningError, match="choose a multiple of 3"):
        Finetuning(tiny, tiny, probe=PROBE, training=SHORT.model_copy(update={"gradient_accumulation_steps": 3}))


def test_the_average_of_every_few_steps_is_that_of_all_steps() -> None:
    state = State(torch.nn.Linear(4, 4), Training(ema_decay=0.99, max_train_steps=403))
    walk = 0.1 * torch.randn(403, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(0)
    exact = state.average[0].clone()
    for step in range(403):
        state.load_weights_([walk[step], torch.zeros(4)])
        state.step = step
        state.average_()
        exact.lerp_(walk[step], 1 - min(0.99, (1 + step) / (10 + step)))
    apart = (walk[-1] - exact).norm()
    assert (state.average[0] - exact).norm() < 0.1 * apart


def test_it_stops_when_the_held_out_loss_rises(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    training = Training(
        max_train_steps=50,
        train_batch_size=4,
        learning_rate=0.5,
        lr_warmup_steps=0,
        ema_decay=0.0,
        validation_steps=2,
        early_stopping_patience=2,
        max_grad_norm=100.0,
    )
    before = weights(fresh)
    history = finetune(fresh, tiny, probe=PROBE, training=training)
    assert (history.best_step, history.steps) == (0, 4)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(fresh), strict=True))


def test_what_was_drawn_is_not_drawn_again(tiny: DiffusionPipeline, fresh: DiffusionPipeline, tmp_path: Path) -> None:
    finetune(fresh, tiny, probe=PROBE, training=SHORT, run=tmp_path)
    (chunk,) = tmp_path.glob("examples/*/*.safetensors")
    written = chunk.stat().st_mtime_ns
    (tmp_path / "finetuning" / "state.safetensors").unlink()
    finetune(fresh, tiny, probe=PROBE, training=SHORT, run=tmp_path)
    assert chunk.stat().st_mtime_ns == written


def test_a_checkpoint_of_other_settings_is_refused(
    tiny: DiffusionPipeline, fresh: DiffusionPipeline, tmp_path: Path
) -> None:
    finetune(fresh, tiny, probe=PROBE, training=SHORT, run=tmp_path)
    with pytest.raises(FinetuningError, match=r"rate was 0\.0001, is 0\.001; delete it"):
        finetune(fresh, tiny, probe=PROBE, training=SHORT.model_copy(update={"learning_rate": 1e-3}), run=tmp_path)
    (tmp_path / "finetuning" / "state.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(FinetuningError, match="is no checkpoint"):
        finetune(fresh, tiny, probe=PROBE, training=SHORT, run=tmp_path)


def test_half_precision_comes_back_as_it_was(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    networks(fresh)["unet"].to(torch.float16)
    training = SHORT.model_copy(update={"precision": "bf16", "gradient_checkpointing": True})
    history = finetune(fresh, tiny, probe=PROBE, training=training)
    assert {weight.dtype for weight in weights(fresh)} == {torch.float16}
    assert np.isfinite(history.losses).all()


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.settings = dict(values)

    def log(self, values: dict[str, float], step: int | None, **_: Any) -> None:
        self.told.append((step or 0, values))


def test_trackers_hear_of_every_step(tiny: DiffusionPipeline, fresh: DiffusionPipeline) -> None:
    notes = Notes()
    history = finetune(fresh, tiny, probe=PROBE, training=SHORT, report_to=[notes])
    assert notes.settings["train_batch_size"] == SHORT.train_batch_size
    assert [values["loss"] for _, values in notes.told if "loss" in values] == list(history.losses)


def test_the_encoder_is_the_way_back_from_decoding(tiny_text: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    for pipeline, name in ((tiny_text, "vae"), (tiny, "vqvae")):
        encoder = find_encoder(pipeline, ldpruner.Probe(samples=1, steps=2, prompts=("a cat",)))
        autoencoder: Any = networks(pipeline)[name]
        torch.testing.assert_close(
            encoder.scale.flatten(),
            torch.full((4,), 1 / autoencoder.config.scaling_factor).double(),
            rtol=1e-4,
            atol=0,
        )
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            wanted = autoencoder.encode(pixels).latent_dist.mode() * autoencoder.config.scaling_factor
        torch.testing.assert_close(encoder([picture]), wanted, rtol=1e-3, atol=1e-4)


def test_packed_latents_need_the_teachers_own_samples() -> None:
    family = FAMILIES["flux"]
    with pytest.raises(FinetuningError, match="finetune without data"):
        find_encoder(family.pipeline(), ldpruner.Probe(samples=1, steps=2, prompts=PROMPTS, call=dict(family.call)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An imagefolder with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as listing:
        for index in range(6):
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
            listing.write(json.dumps({"file_name": f"{index}.png", "text": ("a cat", "the moon")[index % 2]}) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_a_folder_are_learnt_with_their_captions(
    tiny_text: DiffusionPipeline, pictures: Path, tmp_path: Path
) -> None:
    work = Finetuning(copy.deepcopy(tiny_text), tiny_text, pictures, probe=PROBE, training=SHORT, run=tmp_path / "run")
    (text,) = [chunk["given.0"] for chunk in work.distillation.examples.chunks]
    assert (len(work.distillation.examples), *work.distillation.examples.shape) == (6, 4, 8, 8)
    assert text.shape[:2] == (6, 2)
    assert torch.equal(text[0], text[2])
    assert not torch.equal(text[0, 1], text[1, 1])  # captions
    assert torch.equal(text[0, 0], text[1, 0])  # none
    assert len(list(work)) == SHORT.max_train_steps
    assert len(list(tmp_path.glob("run/examples/*/*.safetensors"))) == 1


def test_a_photograph_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    """Cameras write the pixels as the sensor lies, and note how it was turned."""
    lying, noted = Image.new("RGB", (4, 2)), Image.Exif()
    lying.putpixel((0, 0), (255, 255, 255))
    noted[ExifTags.Base.Orientation] = 6  # a quarter turn
    lying.save(tmp_path / "turned.png", exif=noted)
    upright = read_picture(tmp_path / "turned.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore")
def test_sounds_of_a_folder_become_mel_pictures(tmp_path: Path) -> None:
    pipeline = FAMILIES["audio-diffusion"].pipeline()
    mel: Any = pipeline.components["mel"]
    folder = tmp_path / "sounds"
    folder.mkdir()
    wave = np.sin(np.arange(mel.get_sample_rate()) / 9)
    for index in range(3):
        scipy.io.wavfile.write(folder / f"{index}.wav", mel.get_sample_rate(), (wave * 9000).astype(np.int16))
    work = Finetuning(FAMILIES["audio-diffusion"].pipeline(), pipeline, folder, probe=PROBE, training=SHORT)
    assert len(work.distillation.examples) >= 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "no pictures or sounds in"),
        ([{"image": Image.new("RGB", (8, 8))}] * 3, "needs data with a column text"),
        ([{"sound": 1, "text": "a cat"}] * 3, "learns from data with a column image"),
        ([], "holds no example"),
    ],
)
def test_data_that_does_not_fit_is_told(tiny_text: DiffusionPipeline, data: Any, message: str) -> None:
    with pytest.raises(LdPrunerError, match=message):
        Finetuning(copy.deepcopy(tiny_text), tiny_text, data, probe=PROBE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_steps": 0}, "training max_train_steps=0"),
        ({"learning_rate": -1.0}, r"training learning_rate=-1\.0"),
        ({"speed": 3}, "training speed=3"),
        ({"task": 0, "output": 0, "features": 0}, "nothing is learnt"),
        ({"guidance_interval": (0.5, 0.4)}, "give two noise levels"),
    ],
)
def test_settings_that_make_no_sense_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuningError, match=message):
        Training(**settings)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_objective_is_the_one_that_the_scheduler_steps_by(prediction: str) -> None:
    """One step with what is to be found leads back to the clean latents."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    clean, noise = torch.randn(2, 1, 4, 4, 4).unbind(0)
    noisy, target, times = objective_of(scheduler).noised(clean, noise, torch.tensor([0.5]))
    torch.testing.assert_close(scheduler.step(target, int(times), noisy).prev_sample, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["cogvideox", "stable-diffusion-euler", "stable-diffusion-pndm", "hunyuan-dit"])
def test_noise_is_as_strong_as_the_scheduler_has_it(name: str) -> None:
    scheduler: Any = FAMILIES[name].pipeline().components["scheduler"]
    clean, times = torch.ones(3, 1), torch.tensor([100, 500, 900])
    noisy, _, found = objective_of(scheduler).noised(clean, torch.zeros(3, 1), (times + 0.5) / 1000)
    assert torch.equal(found, times)
    torch.testing.assert_close(noisy.flatten() ** 2, scheduler.alphas_cumprod[times].float())


@pytest.mark.filterwarnings("ignore")
def test_guidance_in_separate_calls_is_learnt_from_both() -> None:
    family = FAMILIES["wan"]
    probe = ldpruner.Probe(samples=4, steps=3, prompts=PROMPTS, call=dict(family.call))
    work = Finetuning(family.pipeline(), family.pipeline(), probe=probe, training=SHORT)
    (text,) = [chunk["given.0"] for chunk in work.distillation.examples.chunks]
    assert work.distillation.copies == text.shape[1] == 2
    assert not torch.equal(text[0, 0], text[0, 1])
    assert torch.equal(text[0, 1], text[1, 1])
    torch.testing.assert_close(work.distillation.shares, torch.tensor([0.8, 0.2]))


class Turned(torch.nn.Module):
    """A denoiser that finds the opposite."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (-self.inner(*args, **kwargs)[0],)


def test_a_pipeline_that_turns_round_what_is_found_is_noticed() -> None:
    satellite = ldpruner.load("zoo:satellite")
    distillation = prepare_distillation(satellite, None, PROBE, None, None)
    assert distillation.sign == 1
    assert replace(distillation, teacher=Turned(distillation.teacher)).validate_teacher("one").sign == -1


def test_flow_matching_leads_back_along_a_straight_path() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise = torch.randn(2, 2, 4, 4).unbind(0)
    noisy, target, times = objective_of(scheduler).noised(clean, noise, torch.tensor([0.2, 0.5]))
    share = (times / 1000)[:, None, None]
    torch.testing.assert_close(share.flatten(), torch.tensor([0.6 / 1.4, 0.75]))
    torch.testing.assert_close(noisy - share * target, clean)


def test_errors_in_noise_count_by_one_over_the_signal() -> None:
    objective, times = objective_of(DDIMScheduler()), torch.arange(1000)
    signal = DDIMScheduler().alphas_cumprod.sqrt().clamp(min=0.01)
    torch.testing.assert_close(objective.weights(times) / objective.weights(times)[0], signal[0] / signal)
    torch.testing.assert_close(objective.weights(times).mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler(shift=3.0)]
)
def test_errors_in_a_velocity_count_alike(scheduler: Any) -> None:
    assert objective_of(scheduler).weights(torch.tensor([0, 500, 999])).tolist() == [1, 1, 1]


def test_what_noise_without_signal_counts_for_has_a_limit() -> None:
    weights = objective_of(DDIMScheduler(rescale_betas_zero_snr=True)).weights(torch.arange(1000))
    assert weights.isfinite().all()
    assert weights[-1] == weights.max() <= 100 * weights.min()


@pytest.mark.parametrize(("prediction", "is_alike"), [("epsilon", False), ("v_prediction", True)])
def test_balance_changes_what_a_denoiser_of_noise_learns(
    tiny: DiffusionPipeline, prediction: str, is_alike: bool
) -> None:
    components: dict[str, Any] = tiny.components
    scheduler = components["scheduler"].from_config(components["scheduler"].config, prediction_type=prediction)
    teacher = type(tiny)(**{**components, "scheduler": scheduler})
    found = [
        finetune(copy.deepcopy(teacher), teacher, probe=PROBE, training=training)
        for training in (SHORT, SHORT.model_copy(update={"snr_weighting": False}))
    ]
    assert (found[0].validation_losses == found[1].validation_losses) == is_alike


def test_features_are_seen_through_a_wrapper(tiny: DiffusionPipeline, pruned: DiffusionPipeline) -> None:
    teacher, student = networks(tiny)["unet"], networks(pruned)["unet"]
    names = stages(teacher, student)
    assert set(names) <= {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}
    wrapped = torch.nn.Sequential()
    wrapped.add_module("module", student)
    with features_of(student, names) as found:
        student_input = (torch.randn(1, 4, 8, 8), torch.tensor([3]))
        wrapped.get_submodule("module")(*student_input)
        assert found.keys() == {f"{name} 0" for name in names}
    assert not any(part._forward_hooks for part in student.modules())


def test_command_line_finetunes_a_run(folder: Path, tmp_path: Path) -> None:
    def ldprune(*arguments: str) -> str:
        command = [sys.executable, "-m", "ldpruner", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    run = str(tmp_path / "run")
    ldprune("run", str(folder), "--run", run, "--budget", "parameters=0.7", "--samples", "2", "--steps", "3")
    answer = json.loads(
        ldprune(
            "finetune", "--run", run, "--samples", "8", "--training", "max_train_steps=3,train_batch_size=2", "--json"
        )
    )
    assert answer["steps"] == 3
    recovered = ldpruner.load(tmp_path / "run" / "recovered")
    assert type(networks(recovered)["unet"]).__name__ == "PrunedUNet2DModel"


def test_without_data_the_teacher_alone_tells_what_is_to_be_found(tiny: DiffusionPipeline) -> None:
    assert Finetuning(copy.deepcopy(tiny), tiny, probe=PROBE).training.task_loss_weight == 0
    assert Training().resolved(data=True).task_loss_weight == 1
    assert Training(task_loss_weight=0.5).resolved(data=False).task_loss_weight == 0.5
