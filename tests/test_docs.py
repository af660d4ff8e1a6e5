"""What the documents tell a user to paste works, on small pipelines in the place of the published ones."""

import ast
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.cli import main
from tests.families import FAMILIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAND_INS = {
    "CompVis/ldm-celebahq-256": "ldm",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable-diffusion",
    "stable-diffusion-v1-5/stable-diffusion-inpainting": "stable-diffusion-inpaint",
    "stabilityai/stable-diffusion-xl-base-1.0": "stable-diffusion-xl",
    "stabilityai/sdxl-turbo": "stable-diffusion-xl-img2img",
    "stabilityai/stable-audio-open-1.0": "stable-audio",
    "teticio/latent-audio-diffusion-256": "audio-diffusion",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-two-denoisers",
}
# What suits the published pipelines, and what the small ones.
SMALLER = (
    (r"train_batch_size=\d+", "train_batch_size=4"),
    (r"gradient_accumulation_steps=\d+", "gradient_accumulation_steps=2"),
    (r"(?<!accumulation_)steps(=| )\d+", r"steps\g<1>4"),
    (r"samples(=| )\d+", r"samples\g<1>5"),  # no fewer can be evaluated
    (r'data="images/"', 'data="images/", training=ldpruner.Training(max_train_steps=4, train_batch_size=4)'),
    (r"(height|width)(\": |=)\d+", r"\g<1>\g<2>16"),
    (r"\"num_frames\": \d+", '"num_frames": 5'),
    (r"\"audio_end_in_s\": [\d.]+", '"audio_end_in_s": 0.1'),
    (r" --data images --features inception", ""),  # its weights would be downloaded
    (r" --dtype float16", ""),
    (r"(?m)^(.*ldpruner\.run\((?!.*probe).*)\)$", r"\1, probe=ldpruner.Probe(samples=2, steps=4))"),
    (r"(?m)^(ldpruner (?:run|score) (?!.*--samples).*)$", r"\1 --samples 2"),
    (r"(?m)^(ldpruner (?:run|score) (?!.*--steps).*)$", r"\1 --steps 2"),
    (r"latency=0\.\d+", "parameters=0.9"),  # their latency is mostly not the denoiser's
)
FILE = re.compile(r"# (\w+\.py)\n")  # the first line of a block that a reader saves under this name
RUN = ("bash", "python")  # the languages of blocks that the tests run, unless a comment before says why not
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"\bldpruner ([a-z]+)((?: [^\n`]*)?)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("\\\n", " ")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """The code blocks of a language, each with the name of its page, made small."""
    for page in PAGES:
        for not_run, written_in, block in BLOCK.findall(text_of(page)):
            if not_run or written_in != language:
                continue
            for size, smaller in SMALLER:
                block = re.sub(size, smaller, block)
            if "evaluate" not in block:
                block = re.sub(r"samples(=| )5", r"samples\g<1>2", block)
            yield page.name, block


def python_examples() -> list[Any]:
    """Test parameters; the first runs in every test run, as all go the same way."""
    examples = [(page, block) for page, block in blocks("python") if not FILE.match(block)]
    return [
        pytest.param(block, id=f"{page}-{index}", marks=[pytest.mark.extensive] * (index > 0))
        for index, (page, block) in enumerate(examples)
    ]


def command_examples() -> list[Any]:
    """Test parameters: the commands of a page, which a reader runs in this order in one folder."""
    pages: dict[str, str] = {}
    for page, block in blocks("bash"):
        pages[page] = pages.get(page, "") + block
    return [pytest.param(commands, id=page) for page, commands in pages.items()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red cat\nthe blue sea\n")
    for _, block in blocks("python"):
        if saved := FILE.match(block):
            (tmp_path / saved[1]).write_text(block)
    (tmp_path / "images").mkdir()
    names = ("first.png", "second.png")
    rows = [{"file_name": name, "text": f"a red {name}"} for name in names]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for folder in (tmp_path, tmp_path / "images"):
        for name in names:
            Image.new("RGB", (16, 16), "red").save(folder / name)
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls
@pytest.mark.parametrize("block", python_examples())
def test_a_python_example_runs(block: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder = DiffusionPipeline.from_pretrained

    def stand_in(name: Any, **options: Any) -> DiffusionPipeline:
        return FAMILIES[STAND_INS[name]].pipeline() if name in STAND_INS else open_folder(name, **options)

    for opener in (DiffusionPipeline, AutoPipelineForImage2Image):
        monkeypatch.setattr(opener, "from_pretrained", stand_in)
    for method in ("to", "enable_model_cpu_offload"):
        monkeypatch.setattr(DiffusionPipeline, method, lambda self, *_: self)
    names: dict[str, Any] = {}
    exec(compile(block, "example", "exec"), names)
    assert any(place.glob("runs/*/run.sqlite"))


@pytest.mark.extensive
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("commands", command_examples())
def test_the_commands_of_a_page_run(commands: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in commands.splitlines():
        words = shlex.split(line)
        for index, word in enumerate(words):
            if word in STAND_INS:
                words[index] = str(place / STAND_INS[word])
                FAMILIES[STAND_INS[word]].pipeline().save_pretrained(words[index])
        monkeypatch.setattr(sys, "argv", words)
        assert main() == 0, line


def test_every_option_in_the_documents_exists(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    @cache
    def help_of(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ldpruner", command, "--help"])
        assert main() == 0, command
        return capsys.readouterr().out

    missing = [
        f"{page.name}: ldpruner {command} {option}"
        for page in PAGES
        for command, rest in COMMAND.findall(text_of(page).replace("accelerate launch", ""))
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
        if not re.search(rf"(?<!\S){option}(?![\w-])", help_of(command))
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_code_block_runs_or_says_why_not(page: Path) -> None:
    if page.name in ("README.md", "cli.md"):  # installing and loading; generated
        return
    blocks_of_page = BLOCK.findall(text_of(page))
    assert not [block for not_run, language, block in blocks_of_page if not not_run and language not in RUN]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_examples_use_public_names_and_arguments_that_exist(page: Path) -> None:
    examples = [block for _, language, block in BLOCK.findall(text_of(page)) if language == "python"]
    nodes = [node for block in examples for node in ast.walk(ast.parse(block))]
    calls = {node.func: node for node in nodes if isinstance(node, ast.Call)}
    for name in [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ldpruner"]:
        assert name.attr in ldpruner.__all__
        accepted = inspect.signature(getattr(ldpruner, name.attr)).parameters
        arguments = [keyword.arg for keyword in calls[name].keywords] if name in calls else []
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        assert takes_any or not [argument for argument in arguments if argument not in accepted], name.attr


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8"))
    targets = [((page.parent / path) if path else page, anchor) for path, anchor in links]
    assert not [str(target) for target, _ in targets if not target.exists()]
    assert not [f"{target}#{anchor}" for target, anchor in targets if anchor and anchor not in anchors(target)]


def test_the_readme_is_short_and_names_the_commands_to_try() -> None:
    readme = text_of(ROOT / "README.md")
    tables = re.findall(r"<!-- table: \w+ -->\n(.*?)<!-- end of table: \w+ -->", readme, re.DOTALL)
    assert len(readme.split()) <= 600
    assert "`make demo`" in readme
    assert "`make test`" in readme
    assert tables
    assert all(len(re.findall(r"^\|", table, re.MULTILINE)) <= 7 for table in tables)  # header, rule, five rows


def test_every_page_is_in_the_index() -> None:
    index = text_of(ROOT / "docs" / "README.md")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert not [page for page in pages if f"({page})" not in index]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_github_can_read_its_files(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert content["name"]
        assert content["description"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_continuous_integration_runs_all_checks() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = {name: [step.get("run", "") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    assert ".ci/run" in steps["linux"]
    assert "make test" in steps["macos"]
    assert "pull_request" in workflow[True]  # YAML reads `on` as true
