"""Commands that measure pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.families import FAMILIES

ARCHITECTURES = Path(__file__).parents[1] / "architectures"


def test_operators_prints_the_fields_of_the_contract(run: Run, folder: Path) -> None:
    code, out, _ = run("operators", folder, "--json")
    answer = json.loads(out)
    assert code == 0
    assert {"pipeline", "component", "parameters", "macs", "operators"} <= answer.keys()
    assert (answer["pipeline"], answer["component"]) == ("LDMPipeline", "unet")
    fields = {"operator", "calls", "input_shape", "output_shape", "parameters", "macs", "modifications"}
    assert all(fields <= row.keys() and row["modifications"] for row in answer["operators"])


def test_operators_needs_no_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.json"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert run("operators", tmp_path, "--json")[1] == run("operators", folder, "--json")[1]


@pytest.mark.case(name="any-flow")
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_network_that_needs_its_weights_is_opened_with_them(run: Run, tmp_path: Path) -> None:
    family = FAMILIES["any-flow"]
    family.pipeline().save_pretrained(tmp_path)
    arguments = [word for name, value in family.call.items() for word in ("--pipeline-arg", f"{name}={value}")]
    code, out, _ = run("operators", tmp_path, "--json", *arguments)
    assert code == 0
    assert len(json.loads(out)["operators"]) > 40
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    code, _, err = run("operators", tmp_path, *arguments)
    assert code != 0
    assert err.startswith("error: AnyFlowFARPipeline computes something that needs its weights")
    assert err.count("\n") == 1


@pytest.mark.case(name="lacking-argument")
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_operators_names_the_arguments_that_a_pipeline_lacks(run: Run, tmp_path: Path) -> None:
    FAMILIES["kandinsky-2.2-img2img"].pipeline().save_pretrained(tmp_path)
    code, _, err = run("operators", tmp_path)
    assert code != 0
    assert "its call lacks image_embeds, image, negative_image_embeds" in err


def test_a_large_model_is_summarised_in_80_columns_without_chatter(run: Run) -> None:
    code, out, err = run("operators", ARCHITECTURES / "stable-diffusion-v1-4")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("StableDiffusionPipeline.unet: ")
    assert {"stage", "type"} == {line.split()[0] for line in lines if line.endswith("MACs")}
    assert all(len(line) <= 80 for line in lines[1:-1])
    assert len(lines) < 40
    assert lines[-1].startswith("next: ldpruner score ")


def test_all_operators_are_listed_whole_and_sorted(run: Run) -> None:
    code, out, _ = run("operators", ARCHITECTURES / "stable-diffusion-v1-4", "--all", "--sort", "parameters")
    assert code == 0
    assert "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0 " in out
    assert "…" not in out
    shares = [float(line.split()[-4]) for line in out.splitlines() if line.endswith(" %")]
    assert len(shares) > 300
    assert shares == sorted(shares, reverse=True)


def test_patterns_choose_operators(run: Run, folder: Path) -> None:
    def names(*words: str) -> list[str]:
        return [row["operator"] for row in json.loads(run("operators", folder, "--json", *words)[1])["operators"]]

    assert all(name.startswith("up_blocks.") for name in names("--targets", "up_blocks.*"))
    assert not [name for name in names("--ignore", "mid*", "--ignore", "*norm*") if "norm" in name or "mid" in name]


def test_bench_says_in_words_how_fast(run: Run, folder: Path) -> None:
    code, out, err = run("bench", folder, folder, "--steps", "1", "--rounds", "3", "--json")
    answer = json.loads(out)
    assert code == 0, err
    assert {"pipeline", "parameters", "macs", "latency_ms", "peak_memory_bytes"} <= answer["pipelines"][0].keys()
    ratio = answer["latency_ratio"]
    assert ratio["p10"] <= ratio["median"] <= ratio["p90"]
    assert f"timing {folder} (first) and {folder} (second)" in err
    code, out, _ = run("bench", folder, "--steps", "1", "--rounds", "2")
    assert "ms a call" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("operators", "nowhere"), 1, "nowhere"),
        (("operators", "zoo:nothing"), 1, "satellite"),
        (("operators", "EMPTY"), 1, "model_index.json"),
        (("operators", "MODEL", "--component", "transformer"), 1, "transformer"),
        (("operators", "MODEL", "--ignore", "no_such*"), 1, "no_such*"),
        (("operators", "MODEL", "--sort", "colour"), 2, "colour"),
        (("operators", "MODEL", "--pipeline-arg", "colour=1"), 1, "takes no argument 'colour'"),
        (("bench", "MODEL", "nowhere"), 1, "nowhere"),
        (("bench", "MODEL", "--device", "abacus"), 1, "abacus"),
        (("bench", "MODEL", "--device", "meta"), 1, "meta"),
        (("bench", "MODEL", "--dtype", "int99"), 1, "int99"),
        (("bench", "MODEL", "--guidance", "2"), 1, "takes no guidance"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, problem: str
) -> None:
    places: dict[str, Any] = {"MODEL": folder, "EMPTY": tmp_path}
    given, out, err = run(*(places.get(word, word) for word in words), "--quiet")
    assert (given, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    assert problem in err


@pytest.mark.parametrize("words", [("operators", "m"), ("bench", "m", "n")])
def test_a_dry_run_opens_nothing(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "--dry-run")
    assert code == 0
    assert "m" in str(json.loads(out))
