"""Opening a pipeline where it shall run."""

from pathlib import Path

import diffusers.utils.logging
import pytest
import torch
from diffusers import DiffusionPipeline

from ldpruner.errors import DeviceError
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.pruning.opening import open_pipeline


def test_a_pipeline_opens_in_a_precision_without_bars(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = open_pipeline(folder, "cpu", "bfloat16")
    assert pipeline.unet.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        *(("abacus", None), ("meta", None), ("cuda:99", None), ("cuda:1", None)),
        *(("cpu", "int99"), ("cpu", "nn"), ("cpu", "int8"), ("cpu", "float8_e4m3fn"), ("cpu", "complex64")),
    ],
)
@pytest.mark.case(name="device-or-dtype-that-does-not-exist")
def test_a_missing_device_is_an_error_before_weights_are_read(device: str, dtype: str | None) -> None:
    with pytest.raises(DeviceError, match=dtype or device):
        open_pipeline("nowhere", device, dtype)


def test_components_take_the_place_of_the_folders(tiny: DiffusionPipeline, folder: Path) -> None:
    pipeline = open_pipeline(folder, "cpu", vqvae=tiny.vqvae)
    assert pipeline.vqvae is tiny.vqvae
    assert pipeline.unet is not tiny.unet


@pytest.mark.case(name="float16-on-the-cpu")
def test_half_precision_computes_on_the_cpu(tiny_text: DiffusionPipeline, tmp_path: Path) -> None:
    tiny_text.save_pretrained(tmp_path)
    pipeline = open_pipeline(tmp_path, "cpu", "float16")
    latents = sample_latents(pipeline, Probe(samples=1, steps=1, prompts=("a cat",)), [0])
    assert pipeline.unet.dtype == torch.float16
    assert latents.isfinite().all()
