"""What the documents tell a user to paste runs, on small pipelines in the place of the published ones."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image

from ldpruner.cli import main
from tests.families import FAMILIES

DOCUMENT = Path(__file__).parents[1] / "docs" / "prune-your-own.md"
STAND_INS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable-diffusion",
    "stabilityai/sdxl-turbo": "stable-diffusion-xl-img2img",
    "stabilityai/stable-audio-open-1.0": "stable-audio",
    "teticio/latent-audio-diffusion-256": "audio-diffusion",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-two-denoisers",
}
# What suits the published pipelines, and what the small ones.
SMALLER = (
    (r"samples=500", "samples= 5"),
    (r"batch=64, accumulate=4", "batch=4, accumulate=2"),
    (r"samples(=| )\d+", r"samples\g<1>2"),
    (r"steps(=| )\d+", r"steps\g<1>4"),
    (r"(height|width)(\": |=)\d+", r"\g<1>\g<2>16"),
    (r"\"num_frames\": \d+", '"num_frames": 5'),
    (r"\"audio_end_in_s\": [\d.]+", '"audio_end_in_s": 0.1'),
    (r" --dtype float16", ""),
    (r"latency=0\.\d+", "parameters=0.9"),  # their latency is mostly not the denoiser's
)

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own: deprecated classes, deprecated calls


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for size, smaller in SMALLER:
        found = [re.sub(size, smaller, block) for block in found]
    return found


def commands() -> list[list[str]]:
    inline = re.findall(r"`(ldpruner run [^`]*--budget [^`]*)`", DOCUMENT.read_text(encoding="utf-8"))
    lines = [line for block in blocks("") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in [*lines, *inline] if line.startswith("ldpruner")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red cat\nthe blue sea\n")
    (tmp_path / "pictures").mkdir()
    rows = [{"file_name": name, "text": f"a red {name}"} for name in ("first.png", "second.png")]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for folder in (tmp_path, tmp_path / "pictures"):
        for name in ("first.png", "second.png"):
            Image.new("RGB", (16, 16), "red").save(folder / name)
    return tmp_path


def examples() -> list[Any]:
    """The first in every run, as all go the same way."""
    return [
        pytest.param(block, marks=[pytest.mark.extensive] * (place > 0))
        for place, block in enumerate(blocks("python"))
    ]


@pytest.mark.parametrize("block", examples())
def test_an_example_runs(block: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str, **_: Any) -> DiffusionPipeline:
        return FAMILIES[STAND_INS[name]].pipeline()

    for opener in (DiffusionPipeline, AutoPipelineForImage2Image):
        monkeypatch.setattr(opener, "from_pretrained", opened)
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, *_: self)
    names: dict[str, Any] = {}
    exec(compile(block, str(DOCUMENT), "exec"), names)
    assert any(place.glob("runs/*/run.sqlite"))


@pytest.mark.extensive
@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[1:3]))
def test_a_command_runs(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[STAND_INS[words[2]]]
    family.pipeline().save_pretrained(place / "model")
    monkeypatch.setattr(sys, "argv", [*words[:2], str(place / "model"), *words[3:]])
    assert main() == 0
