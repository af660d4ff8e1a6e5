"""Recipes: what they say, what is wrong with them, and what they would take."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner import Budget, LdPrunerError, Probe, Training
from ldpruner.evaluation.settings import EvaluationSettings
from ldpruner.finetuning.trainer import SAMPLES
from ldpruner.pipelines.meta import open_meta
from ldpruner.recipes import (
    CHOICES,
    MARK,
    Recipe,
    RecipeError,
    carry_out,
    estimate_recipe,
    opened_images,
    read_recipe,
    read_yaml,
)

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
ARCHITECTURES = Path(__file__).parent / "architectures"
CONFIGURATIONS = {
    "sd14-coco": "stable-diffusion-v1-4",
    "ldm-celebahq": "ldm-celebahq-256",
    "latent-audio-256": "latent-audio-diffusion-256",
}
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 18))
SMALL = """
model: {model}
run: {run}
probe: {{samples: 2, steps: 2}}
budget: {{parameters: 0.7}}
training: {{max_train_steps: 3, train_batch_size: 2, lr_warmup_steps: 0, validation_steps: 2, checkpointing_steps: 1}}
examples: 4
evaluation: {{samples: 8}}
"""


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"model": "m", "run": Path("r"), "budget": Budget(macs=0.5), **fields})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_published_recipe_says_of_each_value_where_it_stands(path: Path) -> None:
    """Each line with a value has a comment: published, by whom, or assumed."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"\s*\w+: [^#]", line)]
    unmarked = [line for line in lines if not re.search(r"# (published|assumed)", line) and "run:" not in line]
    assert not unmarked
    assert read_recipe(path).model


def test_the_audio_model_has_its_published_size() -> None:
    """Its weights in float32 are a file of 455 MB."""
    pipeline = open_meta(ARCHITECTURES / "latent-audio-diffusion-256")
    assert 4 * sum(weight.numel() for weight in pipeline.unet.parameters()) / 1e6 == pytest.approx(455, rel=0.002)


def test_full_precision_is_what_yaml_takes_for_false(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: zoo:satellite\nrun: r\nbudget: {latency: 0.5}\ntraining: {mixed_precision: no}\n")
    assert read_recipe(path).training.mixed_precision == "no"


def test_an_estimate_adds_up(tiny: DiffusionPipeline) -> None:
    estimate = estimate_recipe(recipe(exhaustive=True), tiny, tflops=1.0)
    stages = estimate.stages
    total = stages.pop("total")
    assert total.calls == sum(stage.calls for stage in stages.values())
    assert total.hours == pytest.approx(2 * total.macs / 1e12 / 3600)
    assert stages["scoring"].calls == 16 * 25 * (1 + estimate.modifications)


def test_a_recipe_chooses_its_operators_as_run_does(tiny: DiffusionPipeline) -> None:
    chosen = estimate_recipe(recipe(granularity="block", ignore=("mid_block*",)), tiny)
    operators = ldpruner.find_operators(tiny, granularity="block", ignore="mid_block*")
    assert (chosen.granularity, chosen.operators) == ("block", len(operators))
    assert set(CHOICES) <= inspect.signature(ldpruner.run).parameters.keys()


def test_samples_of_the_original_count_where_there_is_no_data(tiny: DiffusionPipeline) -> None:
    plain, fed = (estimate_recipe(recipe(data=data), tiny).stages["finetuning"] for data in (None, Path("pictures")))
    assert plain.calls - fed.calls == SAMPLES * 25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 3}, "recipe has no 'colour' (=3)"),
        (
            {"training": {"learning_rat": 1}},
            "training has no 'learning_rat' (=1); did you mean 'learning_rate'? accepted: max_train_steps",
        ),
        ({"training": {"learning_rate": -1}}, "training learning_rate=-1: Input should be greater than 0"),
        ({"training": {"learning_rate": float("inf")}}, "too large"),
        ({"training": 7}, "training"),
        ({"probe": {"samples": "many"}}, "probe samples='many': Input should be a valid integer"),
        ({"probe": {"prompts": 3}}, "probe prompts=3"),
        ({"budget": {"latency": 1.5}}, "budget latency=1.5 is outside (0, 1]"),
        ({"budget": {}}, "an empty budget"),
        ({"rule": "dice"}, "rule='dice': Input should be 'knapsack', 'greedy' or 'random'"),
        ({"metric": "taste"}, "metric='taste'"),
        ({"dtype": "int99"}, "dtype='int99'"),
        ({"evaluation": {"samples": 2}}, "evaluation samples=2"),
        ({"evaluation": {"data": "pictures"}}, "evaluation data='pictures': files have no latents"),
        ({"model": None}, "model=None"),
        ({"prompts": "p.txt", "probe": {"prompts": ["a cat"]}}, "prompts and probe.prompts are given; choose one"),
        ({"data": "pictures"}, "examples=4 has no effect with data"),
        ({"examples": True}, "recipe examples=True: Input should be a number, not true or false"),
        ({"probe": {"samples": True}}, "probe samples=True"),
        ({"budget": {"macs": True}}, "budget macs=True"),
        ({"evaluation": {"batch_size": -1}}, "evaluation batch_size=-1"),
        ({"modle": "x"}, "did you mean 'model'? accepted: model, run, probe"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SMALL.format(model="m", run="r")), **change}))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not YAML"),
        ("just words", "holds str"),
        ("- a\n- b", "holds list"),
        ("", "holds NoneType"),
        ("a: [1\nb: 2", "not YAML"),
        ("\0", "not YAML"),
        ("model: a\nrun: r\nmodel: b", "'model' is given twice"),
        ("budget:\n  macs: 0.9\n  macs: 0.99", "'macs' is given twice"),
        ("probe:\n  call: {eta: 2020-01-01}", "probe.call.eta=datetime.date(2020, 1, 1) is a date"),
        ("probe:\n  call: {eta: !!set {a, b}}", "is a set"),
        ("a: &a [1]\nb: &b [*a, *b]", "*a repeats another value"),
        ("a: &a [1]\nb: &b {<<: *a}", "*a repeats another value"),
        ("a: &a [*a]", "*a repeats another value"),
        (LAUGHS, "*a0 repeats another value"),
        ("probe:\n  samples: " + "9" * 250, "too large"),
        ("probe:\n  samples: " + "9" * 5000, "not YAML"),
        ("examples: 0x" + "f" * 9000, "too large"),
        ("model: " + "{a: " * 200 + "1" + "}" * 200, "deep"),
        ("model: " + "{a: " * 5000 + "1" + "}" * 5000, "not YAML"),
        ("3: a", "not named by a text"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("? [a, b]\n: 3", "not"),
    ],
)
@pytest.mark.case(name="recipes")
def test_what_is_no_recipe_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nrun: r\n")
    with pytest.raises(RecipeError, match="recipe lacks 'budget'; add it"):
        read_recipe(path)


def test_files_are_read_when_the_recipe_runs(tmp_path: Path) -> None:
    prompts, picture = tmp_path / "p.txt", tmp_path / "a.png"
    plain = recipe(prompts=prompts, probe=Probe(samples=3, call={"image": str(picture)}))
    assert plain.missing == {"prompts": prompts}
    prompts.write_text("a cat\na dog\n")
    Image.new("RGB", (2, 2)).save(picture)
    probe = plain.resolved_probe(5)
    assert (probe.samples, probe.prompts) == (5, ("a cat", "a dog"))
    assert probe.call["image"].size == (2, 2)
    other = tmp_path / "q.txt"
    other.write_text("the sea\n")
    assert plain.resolved_probe(prompts=other).prompts == ("the sea",)


def test_a_missing_image_is_an_error() -> None:
    with pytest.raises(LdPrunerError, match=r"image='nowhere\.png'"):
        opened_images({"image": ["nowhere.png"]})
    assert opened_images({"image": 3, "text": "a.png"}) == {"image": 3, "text": "a.png"}


def test_a_missing_file_stops_a_recipe_before_it_begins() -> None:
    with pytest.raises(RecipeError, match=r"data='nowhere'"):
        next(carry_out(recipe(data=Path("nowhere"))))


@pytest.mark.parametrize("content", ["[]", "{", "3", '"budget"'])
@pytest.mark.case(name="recipe-mark")
def test_a_mark_that_is_no_mark_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / MARK).write_text(content)
    with pytest.raises(RecipeError, match=r"recipe\.json does not say what was pruned: .*delete it") as caught:
        recipe(run=tmp_path).was_pruned()
    assert "\n" not in str(caught.value)


def test_a_scorer_that_is_not_there_stops_a_recipe_before_it_begins() -> None:
    with pytest.raises(LdPrunerError, match="scorer 'no_module_of_this_name:score' cannot be imported"):
        next(carry_out(recipe(evaluation=EvaluationSettings(scorers=("no_module_of_this_name:score",)))))


def test_what_another_recipe_pruned_is_refused(tmp_path: Path) -> None:
    first = recipe(run=tmp_path)
    assert not first.was_pruned()
    first.mark_pruned()
    assert first.was_pruned()
    assert recipe(run=tmp_path, training=Training(seed=3)).was_pruned()
    with pytest.raises(RecipeError, match="was pruned with budget="):
        recipe(run=tmp_path, budget=Budget(macs=0.6)).was_pruned()
