"""The benchmark at the size of Stable Diffusion: what can be checked of it without an accelerator."""

import warnings

import pytest
import torch
from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.full_size import MODEL, open_full_size
from benchmarks.records import machine, read
from benchmarks.waits import WAITED, counted_waits
from ldpruner.pipelines.sampling import sample_latents


def test_what_waits_for_a_device_is_counted_by_its_place(tiny: DiffusionPipeline, probe: ldpruner.Probe) -> None:
    def wait(_: torch.Tensor) -> None:
        warnings.warn(f"{WAITED} (by a test)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    with counted_waits(torch.device("cpu")) as counts:
        sample_latents(tiny, probe, [0], wait)
    ((place, count),) = counts.items()
    assert place.startswith("ldpruner/pipelines/sampling.py:")
    assert count == probe.steps


def test_the_machine_names_its_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "accelerator" not in machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an accelerator")
    assert machine()["accelerator"] == "an accelerator"


@pytest.mark.slow
def test_the_narrow_stand_in_has_the_operators_of_the_published_model() -> None:
    subject = open_full_size(torch.device("cpu"), small=True)
    (published,) = (record["result"] for record in read("coverage") if record["settings"]["pipeline"] == MODEL)
    assert len(subject.operators) == published["operators"]
    assert subject.denoiser.rows == 2  # guided
    assert sample_latents(subject.pipeline, subject.probe(1), [0]).isfinite().all()
