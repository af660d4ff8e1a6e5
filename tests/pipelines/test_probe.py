"""The probe sets the samples and the arguments of the pipeline's call for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import ldpruner
from ldpruner.errors import ProbeError
from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.pipelines.probe import GENERAL_PROMPTS, Probe, default_size
from ldpruner.pipelines.running import run_pipeline
from ldpruner.pipelines.sampling import sample_latents
from tests.families import FAMILIES

RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))


def test_prompts_come_from_a_file_or_a_sequence(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  \nthe moon, größer\n", encoding="utf-8")
    expected = ("a cat", "the moon, größer")
    sources: tuple[Any, ...] = (file, str(file), ["a cat", "the moon, größer"])
    for prompts in sources:
        assert Probe(prompts=prompts).prompts == expected


def test_a_table_of_prompts_brings_their_categories_and_a_text_none(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Prompts,Category\na cat,Animals\nthe sea,Places\n")
    (tmp_path / "p.txt").write_text("the moon\n")
    probe = Probe(prompts=tmp_path / "p.csv")
    assert [probe.category(index) for index in range(3)] == ["Animals", "Places", "Animals"]
    assert Probe.model_validate_json(probe.model_dump_json()) == probe
    other = probe.replace(prompts=tmp_path / "p.txt")
    assert (other.prompts, other.categories, other.category(0)) == (("the moon",), None, None)
    with pytest.raises(ProbeError, match="probe has 2 categories for 1 prompts; give each one"):
        probe.replace(prompts=("the moon",))


def test_prompts_start_again_when_they_run_out(tiny_text: DiffusionPipeline) -> None:
    probe = Probe(prompts=("a cat", "the sea"))
    assert probe.arguments(tiny_text, [0, 1, 2, 5])["prompt"] == ["a cat", "the sea", "a cat", "the sea"]


@pytest.mark.parametrize(
    "values", [{"samples": 0}, {"steps": 0}, {"seed": -1}, {"samples": 1.5}, {"sample": 3}, {"prompts": 3}]
)
def test_a_bad_value_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match=next(iter(values))):
        Probe(**values)


def test_a_probe_is_frozen() -> None:
    probe = Probe()
    with pytest.raises(ValueError, match="frozen"):
        probe.samples = 3  # type: ignore[misc]


def test_a_probe_goes_through_json() -> None:
    probe = Probe(samples=3, steps=4, seed=5, prompts=("a",), guidance=2.5, call={"width": 32})
    assert Probe.model_validate_json(probe.model_dump_json()) == probe


def test_an_empty_file_of_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n\n")
    with pytest.raises(ProbeError, match=r"prompts\.txt"):
        Probe(prompts=tmp_path / "prompts.txt")


def test_a_text_pipeline_without_prompts_is_given_general_ones(tiny_text: DiffusionPipeline) -> None:
    probe = Probe(samples=4).completed(tiny_text)
    assert probe.prompts == GENERAL_PROMPTS
    assert probe.arguments(tiny_text, [1, 2])["prompt"] == list(GENERAL_PROMPTS[1:3])


def test_what_the_user_says_is_not_completed(tiny_text: DiffusionPipeline, tiny: DiffusionPipeline) -> None:
    for probe in (Probe(prompts=("a cat",)), Probe(call={"prompt_embeds": torch.zeros(1, 8, 16)})):
        assert probe.completed(tiny_text) is probe
    assert Probe().completed(tiny).prompts is None


def test_a_negative_prompt_is_one_for_all_or_one_each(tiny_text: DiffusionPipeline) -> None:
    texts = ("dog", ["dog", "sea"])
    shared, several = (Probe(prompts=("a cat",), call={"negative_prompt": text}) for text in texts)
    assert shared.arguments(tiny_text, [0, 1])["negative_prompt"] == ["dog", "dog"]
    assert several.arguments(tiny_text, [0, 1, 2])["negative_prompt"] == ["dog", "sea", "dog"]


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_an_image_is_one_for_all_or_one_each() -> None:
    pipeline = FAMILIES["stable-diffusion-img2img"].pipeline()
    shared, several = (Probe(prompts=("a cat",), call={"image": image}) for image in (RED, [RED, BLUE]))
    assert shared.arguments(pipeline, [0, 1])["image"] == [RED, RED]
    assert several.arguments(pipeline, [0, 1, 2])["image"] == [RED, BLUE, RED]


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_a_single_sample_is_asked_for_without_lists() -> None:
    """Some pipelines take none."""
    pipeline = FAMILIES["stable-diffusion-img2img"].pipeline()
    arguments = Probe(prompts=("a cat", "the sea"), call={"image": [RED, BLUE]}).arguments(pipeline, [1])
    assert (arguments["prompt"], arguments["image"]) == ("the sea", BLUE)
    assert isinstance(arguments["generator"], torch.Generator)


def test_numbers_stay_as_they_are(tiny_text: DiffusionPipeline) -> None:
    arguments = Probe(call={"height": 32, "width": 32, "num_images_per_prompt": 1}).arguments(tiny_text, [0, 1])
    assert (arguments["height"], arguments["num_images_per_prompt"]) == (32, 1)


def test_rows_of_a_tensor_belong_to_samples(tiny_text: DiffusionPipeline) -> None:
    embeddings = torch.randn(2, 8, 16)
    rows = Probe(call={"prompt_embeds": embeddings}).arguments(tiny_text, [0, 1, 2])["prompt_embeds"]
    assert torch.equal(rows, embeddings[[0, 1, 0]])


@pytest.mark.case(name="kandinsky-2.2-img2img")
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_tensors_in_a_list_are_one_each_and_stay_a_list() -> None:
    pipeline = FAMILIES["kandinsky-2.2-img2img"].pipeline()
    images, embeddings = torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    probe = Probe(call={"image": list(images), "image_embeds": list(embeddings), "negative_image_embeds": embeddings})
    (image,), (row,) = (probe.arguments(pipeline, [3])[name] for name in ("image", "image_embeds"))
    assert image is probe.call["image"][1]
    assert row is probe.call["image_embeds"][1]
    assert torch.equal(probe.arguments(pipeline, [3])["negative_image_embeds"], embeddings[1:])


def test_labels_may_be_a_tensor(tiny_transformer: DiffusionPipeline) -> None:
    probe = Probe(call={"class_labels": torch.tensor([4, 2])})
    assert probe.arguments(tiny_transformer, [0, 1, 2])["class_labels"] == [4, 2, 4]


def test_the_images_of_an_adapter_are_the_same_for_all_samples(tiny_text: DiffusionPipeline) -> None:
    adapters = [torch.rand(2, 1, 16), torch.rand(2, 1, 16)]
    for value in (adapters, [RED, BLUE]):
        name = "ip_adapter_image_embeds" if value is adapters else "ip_adapter_image"
        assert Probe(call={name: value}).arguments(tiny_text, [1])[name] == value


def test_the_probe_says_what_each_latent_was_made_from() -> None:
    probe = Probe(samples=3, prompts=("a cat", "the sea"))
    assert [row["prompt"] for row in probe.sample_settings()] == ["a cat", "the sea", "a cat"]
    assert [row["seed"] for row in probe.sample_settings()] == [probe.sample_seed(index) for index in range(3)]
    assert "prompt" not in Probe(samples=1).sample_settings()[0]


def test_different_images_differ_in_json() -> None:
    red, blue, again = (Probe(call={"image": [image]}).model_dump(mode="json") for image in (RED, BLUE, RED.copy()))
    assert red == again != blue


def test_a_sequence_without_prompts_is_refused() -> None:
    with pytest.raises(ProbeError, match="prompts"):
        Probe(prompts=())


def test_samples_and_probes_have_seeds_of_their_own() -> None:
    seeds = {Probe(seed=seed).sample_seed(index) for seed in range(5) for index in range(100)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine() -> None:
    state = np.random.SeedSequence([3, 4]).generate_state(2, np.uint32)  # 32-bit words, lowest first
    assert Probe(seed=3).sample_seed(4) == (int(state[0]) + (int(state[1]) << 32)) >> 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"call": {"colour": 1}}, "LDMPipeline takes no argument 'colour'; accepted: batch_size, generator, eta"),
        ({"prompts": ("a cat",)}, "takes no prompts"),
        ({"guidance": 2.0}, "takes no guidance; leave out guidance"),
    ],
)
def test_an_argument_that_the_pipeline_lacks_is_refused(
    tiny: DiffusionPipeline, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProbeError, match=words):
        Probe(**settings).check(tiny)


def test_a_pipeline_is_not_called_with_an_argument_that_it_does_not_have(tiny: DiffusionPipeline) -> None:
    with pytest.raises(ProbeError, match="no argument 'colour'"):
        Probe(call={"colour": 1}).arguments(tiny, [0])


@pytest.mark.case(number=12)
def test_a_probe_from_json_asks_for_its_image_in_one_line_and_recognises_it() -> None:
    probe = Probe(samples=2, call={"image": RED, "strength": 0.5})
    stored = Probe.model_validate_json(probe.model_dump_json())
    assert stored.model_dump(mode="json") == probe.model_dump(mode="json")
    pipeline = FAMILIES["stable-diffusion-img2img"].pipeline()
    line = r"made with image=Image, which its files do not hold; give it again: --pipeline-arg image=PATH"
    for use in (stored.check_complete, lambda: stored.check(pipeline), lambda: stored.arguments(pipeline, [0])):
        with pytest.raises(ProbeError, match=line):
            use()
    assert stored.with_call({"image": RED.copy()}).arguments(pipeline, [0])["image"] == RED
    with pytest.raises(ProbeError, match=r"is not what the run was made with; give the same"):
        stored.with_call({"image": BLUE})
    assert stored.with_call({"strength": 0.4}).call["strength"] == 0.4


@pytest.mark.case(number=11)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": ("a cat",)}, "takes no prompts"),
        ({"guidance": 2.0}, "takes no guidance"),
        ({"call": {"heigth": 64}}, "takes no argument 'heigth'; accepted: "),
        ({"call": {"eta_": 1}}, r"did you mean 'eta'\? accepted: "),
    ],
)
def test_no_use_of_a_probe_ignores_an_argument(tiny: DiffusionPipeline, settings: dict[str, Any], words: str) -> None:
    probe = Probe(samples=2, steps=2, **settings)
    uses: tuple[Callable[[], Any], ...] = (
        lambda: ldpruner.score_operators(tiny, probe=probe),
        lambda: ldpruner.finetune(tiny, tiny, probe=probe),
        lambda: ldpruner.evaluate(tiny, tiny, probe.replace(samples=8)),
        lambda: find_denoiser(tiny, call=probe.arguments(tiny, [0])),
        lambda: sample_latents(tiny, probe, [0]),
    )
    for use in uses:
        with pytest.raises(ProbeError, match=words):
            use()


@pytest.mark.case(number=11)
@pytest.mark.parametrize(
    "settings",
    [
        {"call": {"num_inference_steps": 3}},
        {"call": {"generator": torch.Generator()}},
        {"call": {"batch_size": 2}},
        {"call": {"return_dict": False}},
        {"prompts": ("a",), "call": {"prompt": "b"}},
        {"guidance": 2.0, "call": {"guidance_scale": 3.0}},
    ],
)
def test_a_setting_that_is_given_twice_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ProbeError) as caught:
        Probe(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.case(name="numbers-that-mean-nothing")
@pytest.mark.parametrize(
    "settings",
    [
        {"samples": True},
        {"samples": -1},
        {"samples": 10**400},
        {"samples": 10**5000},
        {"steps": False},
        {"seed": 2**64},
        {"seed": -1},
        {"guidance": float("nan")},
        {"guidance": float("inf")},
        {"guidance": True},
        {"call": {"eta": float("inf")}},
        {"call": {"eta": [0.0, float("nan")]}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_number_that_means_nothing_is_one_short_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match=r"^probe ") as caught:
        Probe(**settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.case(name="prompts-unicode-lines")
def test_only_a_line_break_ends_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("line\u2028two\nnel\x85two\r\nvt\x0bthree\n".encode())
    assert Probe(prompts=file).prompts == ("line\u2028two", "nel\x85two", "vt\x0bthree")


@pytest.mark.case(name="prompts-byte-order-mark")
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa cat\n")
    assert Probe(prompts=file).prompts == ("a cat",)


@pytest.mark.parametrize("data", ["a cat".encode("utf-16"), "a cat".encode("utf-16-le"), b"\xff\xfe\n", b"a\0b"])
def test_a_prompts_file_of_another_encoding_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(data)
    with pytest.raises(ProbeError, match=r"prompts\.txt"):
        Probe(prompts=file)


@pytest.mark.case(number=11)
def test_a_height_without_a_width_is_refused_as_many_pipelines_ignore_it(tiny_text: DiffusionPipeline) -> None:
    with pytest.raises(ProbeError, match="give both"):
        Probe(call={"height": 32}).arguments(tiny_text, [0])


@pytest.mark.parametrize(
    ("name", "size"), [("stable-diffusion-xl", (16, 16)), ("wan", (480, 832)), ("flux", (256, 256)), ("ldm", None)]
)
def test_the_default_size_stands_in_the_call_or_in_the_networks(name: str, size: tuple[int, int] | None) -> None:
    assert default_size(FAMILIES[name].pipeline()) == size


def test_the_default_size_is_that_of_a_sample(tiny_text: DiffusionPipeline) -> None:
    """Although the autoencoder has a size of its own, in pixels."""
    assert tiny_text.vae.config.sample_size == 16
    (image,) = run_pipeline(tiny_text, {"prompt": "a cat", "num_inference_steps": 1}).images
    assert default_size(tiny_text) == (image.height, image.width)
