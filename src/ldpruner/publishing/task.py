"""What a pipeline does, in the Hub's words."""

import inspect
from typing import Any

from diffusers.pipelines import auto_pipeline

# The lists that diffusers' auto classes choose from; earlier versions have fewer.
TASKS = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": "text-to-image",
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": "image-to-image",
    "AUTO_INPAINT_PIPELINES_MAPPING": "image-to-image",
    "AUTO_TEXT2VIDEO_PIPELINES_MAPPING": "text-to-video",
    "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING": "image-to-video",
    "AUTO_VIDEO2VIDEO_PIPELINES_MAPPING": "video-to-video",
    "AUTO_TEXT2AUDIO_PIPELINES_MAPPING": "text-to-audio",
}


def pipeline_tag(pipeline_class: Any) -> str | None:
    """The task of a pipeline's class, by diffusers' lists, else by the arguments of its call; None if unclear."""
    for mapping, task in TASKS.items():
        if pipeline_class in getattr(auto_pipeline, mapping, {}).values():
            return task
    arguments = set(inspect.signature(pipeline_class.__call__).parameters)
    source = "image" if "image" in arguments else "text" if "prompt" in arguments else None
    if any("audio" in name for name in arguments):
        return "text-to-audio" if source == "text" else None
    if source is not None:
        return f"{source}-to-{'video' if 'num_frames' in arguments else 'image'}"
    is_unconditional = "batch_size" in arguments and "class_labels" not in arguments
    return "unconditional-image-generation" if is_unconditional else None
