"""Small pipelines of many families with random weights, built and run as the real ones."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from tests.families import transformers, unets, unusual
from tests.families.parts import PROMPTS


@dataclass(frozen=True)
class Family:
    """How to build a small pipeline of a family, and what its call needs."""

    build: Callable[[], Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    component: str | None = None

    def pipeline(self) -> DiffusionPipeline:
        """The pipeline, the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline: DiffusionPipeline = self.build()
        return pipeline

    @functools.cached_property
    def prompts(self) -> tuple[str, ...] | None:
        """Some prompts, if the pipeline takes any."""
        return PROMPTS if "prompt" in inspect.signature(type(self.pipeline()).__call__).parameters else None

    def sample(self, pipeline: Any) -> torch.Tensor:
        """The latents of one plain call, or the arrays of a pipeline that cannot leave out decoding."""
        arguments = {
            "prompt": PROMPTS[0],
            "class_labels": [1],
            "num_inference_steps": 2,
            "steps": 2,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
            **self.call,
        }
        accepted = inspect.signature(pipeline.__call__).parameters
        pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some use the global random state beside their generator
            arguments = {name: value for name, value in arguments.items() if name in accepted}
            samples = pipeline(**arguments, return_dict=False)[0]
        return torch.stack(
            [sample if isinstance(sample, torch.Tensor) else torch.as_tensor(np.asarray(sample)) for sample in samples]
        )


FAMILIES = {
    **{name: Family(*entry) for name, entry in unets.FAMILIES.items()},
    **{name: Family(*entry) for name, entry in transformers.FAMILIES.items()},
    **{name: Family(*entry) for name, entry in unusual.FAMILIES.items()},
}
