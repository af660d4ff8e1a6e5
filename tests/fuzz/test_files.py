"""Damaged files: reading each gives a value, or an error of ours in one line."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldpruner import LdPrunerError, Plan, Probe
from ldpruner.evaluation.media import read_picture, read_sound
from ldpruner.finetuning.metadata import read_metadata
from ldpruner.pruning.serialization import load, load_meta
from ldpruner.recipes import Recipe, read_recipe
from ldpruner.run_folder import RunFolder
from tests.fuzz.conftest import Place, sizes
from tests.fuzz.strategies import Strategy, changed, damaged, json_files, yaml_files

RECIPE = {
    "model": "model",
    "run": "run",
    "budget": {"latency": 0.5, "parameters": 0.9},
    "probe": {"samples": 2, "steps": 3, "seed": 4, "call": {"eta": 0.5, "size": [1, 2]}},
    "ignore": ["mid_block*"],
    "training": {"max_train_steps": 3, "guidance_interval": [0.0, 1.0], "mixed_precision": "no"},
    "evaluation": {"samples": 8, "features": "latents"},
    "exhaustive": True,
    "device": "cpu",
}
ROWS = [{"file_name": f"{index}.png", "text": f"a cat, number {index}", "label": index} for index in range(3)]
CSV = b'file_name,text,label\n0.png,"a cat, asleep",0\n1.png,the sea,1\n2.png,a dog,2\n'


def outcome_of(read: Callable[[], Any]) -> Any:
    """What reading gives; None where it is refused in one line."""
    try:
        return read()
    except LdPrunerError as error:
        text = str(error)
        assert text.strip()
        assert len(text) < 1000
        return None


def attempt(inputs: int, contents: Strategy[bytes], path: Path, check: Callable[[Path, bytes], None]) -> None:
    """Writes damaged contents to a file and checks what reading it does, some times."""

    @settings(max_examples=inputs)
    @given(contents)
    def check_one(data: bytes) -> None:
        path.write_bytes(data)
        check(path, data)

    check_one()


@sizes(30, 100)
def test_plans(template: Place, tmp_path: Path, inputs: int) -> None:
    document = json.loads((template / "run/plan.json").read_bytes())

    def check(path: Path, data: bytes) -> None:
        plan = outcome_of(lambda: Plan.read(path))
        if plan is not None:  # then nothing that the file says was dropped
            given_fields, dumped = json.loads(data), json.loads(plan.model_dump_json())
            assert given_fields.keys() <= dumped.keys()
            assert len(given_fields["removed"]) == len(dumped["removed"])

    attempt(inputs, json_files(document), tmp_path / "plan.json", check)


@sizes(30, 100)
def test_recipes(tmp_path: Path, inputs: int) -> None:
    def check(path: Path, data: bytes) -> None:
        recipe = outcome_of(lambda: read_recipe(path))
        if recipe is not None:
            dumped = recipe.model_dump(mode="json")
            assert yaml.safe_load(data).keys() <= dumped.keys()
            assert Recipe.model_validate(dumped) == recipe

    attempt(inputs, yaml_files(RECIPE), tmp_path / "recipe.yaml", check)


@sizes(30, 100)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata(tmp_path: Path, name: str, inputs: int) -> None:
    names = {str(row["file_name"]) for row in ROWS}
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    other_rows = st.lists(changed(ROWS[0]), min_size=1, max_size=3)
    rows = other_rows.map(lambda rows: "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    contents = st.one_of(damaged(lines), rows) if name.endswith("jsonl") else damaged(CSV)

    def check(path: Path, data: bytes) -> None:
        rows = outcome_of(lambda: read_metadata(path.parent, names))
        if rows is not None:
            assert names & rows.keys()
            assert all(isinstance(row, dict) and isinstance(row["file_name"], str) for row in rows.values())

    attempt(inputs, contents, tmp_path / name, check)


@sizes(30, 60)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "bmp", "16-bit", "palette", "exif"])
def test_pictures(tmp_path: Path, form: str, inputs: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    picture, exif, file = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    if form == "16-bit":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(file, "png")
    elif form == "palette":
        picture.quantize(16).save(file, "png", transparency=b"\0\x80")
    else:
        picture.save(file, "jpeg" if form == "exif" else form, exif=exif if form == "exif" else b"")

    def check(path: Path, _: bytes) -> None:
        read = outcome_of(lambda: read_picture(path))
        assert read is None or (read.mode == "RGB" and read.width * read.height < 2**27)

    attempt(inputs, damaged(file.getvalue()), tmp_path / "a.png", check)


@sizes(30, 60)
@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_sounds(tmp_path: Path, form: str, inputs: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(2000) / 9), 8000, format=form)

    def check(path: Path, _: bytes) -> None:
        read = outcome_of(lambda: read_sound(path, 8000))
        assert read is None or (read.ndim == 2 and read.size and bool(np.isfinite(read).all()))

    attempt(inputs, damaged(file.getvalue()), tmp_path / f"a.{form}", check)


@sizes(30, 100)
def test_prompts(tmp_path: Path, inputs: int) -> None:
    contents = st.one_of(damaged("a cat\nthe moon, größer\n\ufeffx\r\n".encode()), st.binary(max_size=40))

    def check(path: Path, data: bytes) -> None:
        probe = outcome_of(lambda: Probe(prompts=path))
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            text = ""
        lines = tuple(line.strip() for line in text.split("\n") if line.strip())
        is_text = lines and "\0" not in "".join(lines)
        assert (probe.prompts if probe is not None else ()) == (lines if is_text else ())

    attempt(inputs, contents, tmp_path / "prompts.txt", check)


@sizes(30, 100)
def test_stores(template: Place, tmp_path: Path, inputs: int) -> None:
    """A damaged store is refused, or what it says is what it said."""
    scores, folder = RunFolder(template / "run").scores(), RunFolder(tmp_path)

    def check(_: Path, __: bytes) -> None:
        read = outcome_of(folder.scores)
        assert read is None or read == scores

    attempt(inputs, damaged((template / "run/run.sqlite").read_bytes()), tmp_path / "run.sqlite", check)


@sizes(10, 50)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_pipelines(places: Callable[[], Place], name: str, inputs: int) -> None:
    """A pruned pipeline's folder with one damaged file."""
    pruned = places() / "run/pruned"
    contents = json_files(json.loads((pruned / name).read_bytes()))

    def check(_: Path, __: bytes) -> None:
        outcome_of(lambda: load_meta(pruned))
        outcome_of(lambda: load(pruned))

    attempt(inputs, contents, pruned / name, check)


@sizes(6, 30)
def test_weights(places: Callable[[], Place], inputs: int) -> None:
    pruned = places() / "run/pruned"
    (weights,) = (pruned / "unet").glob("*.safetensors")

    def check(_: Path, __: bytes) -> None:
        outcome_of(lambda: load(pruned))

    attempt(inputs, damaged(weights.read_bytes()), weights, check)
