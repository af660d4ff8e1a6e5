"""Recipes: what they say, what is wrong with them, what they would take, and a small one from end to end."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from diffusers import DiffusionPipeline

import ldpruner
from ldpruner import cli
from ldpruner.budget import Budget
from ldpruner.finetuning import Training
from ldpruner.pipelines.meta import open_meta
from ldpruner.recipe_cost import estimate
from ldpruner.recipes import Recipe, RecipeError, read_recipe

Run = Callable[..., tuple[int, str, str]]
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
ARCHITECTURES = Path(__file__).parent / "architectures"
CONFIGURATIONS = {
    "sd14-coco": "stable-diffusion-v1-4",
    "ldm-celebahq": "ldm-celebahq-256",
    "latent-audio-256": "latent-audio-diffusion-256",
}
SMALL = """
model: {model}
run: {run}
probe: {{samples: 2, steps: 2}}
budget: {{parameters: 0.7}}
training: {{max_train_steps: 3, train_batch_size: 2, lr_warmup_steps: 0, validation_steps: 2, checkpointing_steps: 1}}
examples: 4
evaluation: {{samples: 8}}
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `ldpruner recipe`; gives the exit code, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ldpruner", "recipe", *map(str, arguments)])
        capfd.readouterr()
        code = cli.main()
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_recipe_passes_its_dry_run(run: Run, path: Path) -> None:
    code, out, err = run(path, "--dry-run", "--json", "--config", ARCHITECTURES / CONFIGURATIONS[path.stem])
    assert code == 0, err
    answer = json.loads(out)
    assert answer["operators"] > 200
    assert answer["modifications"] >= answer["operators"]
    stages = answer["stages"]
    assert stages.keys() == {"scoring", "finetuning", "evaluation", "total"}
    assert stages["total"]["hours"] == pytest.approx(sum(stages[name]["hours"] for name in stages if name != "total"))
    assert "arithmetic" in answer["note"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_published_recipe_says_where_it_is_from(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r" *\w+: .", line) and not line.startswith("run:")]
    assert [line for line in values if not re.search(r"# (published|assumed)", line)] == []
    assert "/home" not in "".join(lines)
    assert "/work" not in "".join(lines)


def test_the_numbers_of_stable_diffusion_are_those_of_the_formulas(run: Run) -> None:
    """401.6 GMACs as field measurements have it; two rows under guidance; three fifths of the latency are kept."""
    path = next(one for one in RECIPES if one.stem == "sd14-coco")
    folder = ARCHITECTURES / CONFIGURATIONS["sd14-coco"]
    answer = json.loads(run(path, "--dry-run", "--json", "--config", folder, "--tflops", "50")[1])
    assert answer["parameters"] == 859_520_964
    assert answer["macs"] / 1e9 == pytest.approx(401.6, rel=1e-3)
    stages = answer["stages"]
    assert stages["scoring"]["calls"] == (1 + answer["modifications"]) * 64 * 25 * 2
    assert stages["finetuning"]["calls"] == 50_000 * 256 * 2
    assert stages["evaluation"]["calls"] == 3 * 30_000 * 25 * 2
    trained = 12_800_000 * (1 + 4 * 0.651)  # the teacher; forth, forth again for checkpointing, and back twice
    assert stages["finetuning"]["macs"] / answer["macs"] == pytest.approx(trained)
    assert stages["evaluation"]["macs"] / answer["macs"] == pytest.approx(1_500_000 * 2.651)
    assert stages["finetuning"]["hours"] == pytest.approx(trained * answer["macs"] * 2 / 50e12 / 3600)
    assert answer["missing"]["probe.prompts"] == "data/coco/captions-train2014.txt"


def test_the_audio_model_has_its_published_size() -> None:
    """Its weights in float32 are a file of 455 MB."""
    pipeline = open_meta(ARCHITECTURES / "latent-audio-diffusion-256")
    assert 4 * sum(weight.numel() for weight in pipeline.unet.parameters()) / 1e6 == pytest.approx(455, rel=0.002)


def test_full_precision_is_what_yaml_takes_for_false(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: zoo:satellite\nrun: r\nbudget: {latency: 0.5}\ntraining: {precision: no}\n")
    assert read_recipe(path).training.mixed_precision == "no"


def test_samples_of_the_original_count_where_there_is_no_data(tiny: DiffusionPipeline) -> None:
    recipe = Recipe(model="m", run=Path("r"), budget=Budget(macs=0.5), examples=10)
    plain, fed = (estimate(recipe.model_copy(update={"data": data}), tiny).stages for data in (None, Path("pictures")))
    assert plain["finetuning"].calls - fed["finetuning"].calls == 10 * recipe.probe.steps
    assert fed["finetuning"].macs == pytest.approx(16_000 * (1 + 3 * 0.5) * estimate(recipe, tiny).macs)


def test_autoguidance_costs_a_call_of_the_pruned_denoiser_too(tiny: DiffusionPipeline) -> None:
    """Beside the teacher's; so it is also where nothing else asks the teacher."""
    recipe = Recipe(model="m", run=Path("r"), budget=Budget(macs=0.5), data=Path("pictures"))
    training = Training(
        max_train_steps=10, train_batch_size=4, task_loss_weight=1, output_kd_weight=0, feature_kd_weight=0
    )
    led = training.model_copy(update={"autoguidance_scale": 1.0})
    alone, with_both = (estimate(recipe.model_copy(update={"training": one}), tiny) for one in (training, led))
    assert (alone.stages["finetuning"].calls, with_both.stages["finetuning"].calls) == (40, 120)
    assert with_both.stages["finetuning"].macs == pytest.approx(40 * (1 + 0.5 + 3 * 0.5) * with_both.macs)


def test_a_table_is_for_people(run: Run) -> None:
    path = next(one for one in RECIPES if one.stem == "latent-audio-256")
    code, out, _ = run(path, "--dry-run", "--config", ARCHITECTURES / CONFIGURATIONS[path.stem])
    assert code == 0
    assert "GPU hours" in out
    assert "by arithmetic alone" in out
    assert "missing: data=data/audio-diffusion-256" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 3}, "no field colour (=3)"),
        ({"training": {"rat": 1}}, "no field training.rat (=1); use one of rate"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate=-1: Input should be greater than 0"),
        ({"training": {"task": 0, "output": 0, "features": 0}}, "training.task=0"),
        ({"training": 7}, "training=7: write its fields below it"),
        ({"probe": {"samples": "many"}}, "probe.samples='many': Input should be a valid integer"),
        ({"probe": {"steps": 0}}, "probe.steps=0: Input should be greater than or equal to 1"),
        ({"probe": {"prompts": 3}}, "probe.prompts=3"),
        ({"budget": {"latency": 1.5}}, "budget.latency=1.5 is outside (0, 1]"),
        ({"budget": {}}, "an empty budget"),
        ({"rule": "dice"}, "rule='dice': Input should be 'knapsack' or 'greedy'"),
        ({"metric": "taste"}, "metric='taste'"),
        ({"dtype": "int99"}, "dtype='int99'"),
        ({"evaluation": {"samples": 2}}, "evaluation.samples=2"),
        ({"evaluation": {"data": "pictures"}}, "evaluation={'data': 'pictures'}: files have no latents"),
        ({"model": None}, "model=None"),
    ],
)
def test_a_wrong_field_is_one_line_with_its_path(
    run: Run, folder: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    good = yaml.safe_load(SMALL.format(model=folder, run=tmp_path / "run"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**good, **change}))
    code, out, err = run(path, "--dry-run")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{path}: {words}" in err


@pytest.mark.parametrize("text", ["{", "just words", "- a\n- b", "", "a: [1\nb: 2", "\0"])
def test_what_is_no_recipe_is_one_line(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    code, out, err = run(path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(path) in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nowhere.yaml",), 1, "nowhere.yaml"),
        ((".",), 1, "IsADirectoryError"),
        ((), 2, "file"),
        (("GOOD", "--only", "sleep"), 2, "sleep"),
        (("GOOD", "--only", "evaluate"), 1, "ldpruner score"),
        (("GOOD", "--dry-run", "--config", "nowhere"), 1, "nowhere"),
        (("GOOD", "--dry-run", "--tflops", "0"), 2, "--tflops"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(SMALL.format(model=folder, run=tmp_path / "run"))
    given, out, err = run(*(good if word == "GOOD" else word for word in words))
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert told in err


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nrun: r\n")
    with pytest.raises(RecipeError, match="no field budget; add it"):
        read_recipe(path)


def test_a_missing_file_is_told_when_dry_and_an_error_when_not(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=tmp_path / "run") + "data: nowhere\n")
    code, out, _ = run(path, "--dry-run", "--json")
    assert (code, json.loads(out)["missing"]) == (0, {"data": "nowhere"})
    code, out, err = run(path)
    assert (code, out) == (1, "")
    assert "data='nowhere': no such file" in err
    assert not (tmp_path / "run").exists()


def test_several_processes_only_finetune(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=tmp_path / "run"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(path)
    assert code == 2
    assert "--only finetune" in err


def test_an_unconditional_pipeline_has_no_clip_score(tiny: DiffusionPipeline) -> None:
    recipe = Recipe.model_validate({"model": "m", "run": "r", "budget": {"macs": 0.5}, "evaluation": {"clip": "c"}})
    with pytest.raises(RecipeError, match="LDMPipeline takes no prompts"):
        estimate(recipe, tiny)


def test_a_small_recipe_runs_from_end_to_end_and_resumes(run: Run, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL.format(model=folder, run=place))
    code, out, err = run(path, "--json")
    assert code == 0, err
    first = json.loads(out)
    assert first.keys() == {"prune", "finetune", "evaluate"}
    assert first["prune"]["predicted"]["parameters"] <= 0.7
    assert first["finetune"]["steps"] == 3
    names = ("run.sqlite", "plan.json", "pruned", "recovered", "evaluation.json", "recipe.json")
    assert all((place / name).exists() for name in names)

    plan, pruned = (place / "plan.json").stat().st_mtime_ns, (place / "pruned").stat().st_mtime_ns
    shutil.rmtree(place / "recovered")
    code, out, err = run(path, "--json")
    assert code == 0, err
    second = json.loads(out)
    assert second["prune"] is None
    assert second["finetune"] == first["finetune"]
    assert (plan, pruned) == ((place / "plan.json").stat().st_mtime_ns, (place / "pruned").stat().st_mtime_ns)
    assert ldpruner.load(place / "recovered").unet.num_parameters() == first["prune"]["pipelines"][1]["parameters"]

    path.write_text(path.read_text().replace("0.7", "0.8"))
    code, _, err = run(path)
    assert code == 1
    assert "was pruned with budget=" in err
