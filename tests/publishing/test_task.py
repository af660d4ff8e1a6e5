"""What a pipeline does, in the Hub's words."""

import diffusers
import pytest

from ldpruner.publishing.task import pipeline_tag


@pytest.mark.parametrize(
    ("pipeline", "task"),
    [
        ("StableDiffusionPipeline", "text-to-image"),
        ("FluxPipeline", "text-to-image"),
        ("StableDiffusionControlNetPipeline", "text-to-image"),
        ("StableDiffusionXLInpaintPipeline", "image-to-image"),
        ("StableDiffusionUpscalePipeline", "image-to-image"),
        ("WanPipeline", "text-to-video"),
        ("AnimateDiffPipeline", "text-to-video"),
        ("StableVideoDiffusionPipeline", "image-to-video"),
        ("AudioLDM2Pipeline", "text-to-audio"),
        ("StableAudioPipeline", "text-to-audio"),
        ("LDMPipeline", "unconditional-image-generation"),
        ("DDPMPipeline", "unconditional-image-generation"),
        ("DiTPipeline", None),
        ("AudioDiffusionPipeline", None),
    ],
)
def test_a_pipeline_has_a_task(pipeline: str, task: str | None) -> None:
    assert pipeline_tag(getattr(diffusers, pipeline)) == task
