"""Small pipelines of many families, with random weights: built in a blink, run as the real ones are."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from tests.families import transformers, unets
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

    def drawn(self, pipeline: Any) -> torch.Tensor:
        """The latents of one plain call, or the arrays of a pipeline that cannot leave out decoding."""
        wanted = {
            "prompt": PROMPTS[0],
            "class_labels": [1],
            "num_inference_steps": 2,
            "steps": 2,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
            **self.call,
        }
        known = inspect.signature(pipeline.__call__).parameters
        pipeline.set_progress_bar_config(disable=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some draw from the global state beside their generator
            found = pipeline(**{name: value for name, value in wanted.items() if name in known}, return_dict=False)[0]
        return torch.stack([torch.as_tensor(np.asarray(one)) for one in found])


FAMILIES = {
    **{name: Family(*entry) for name, entry in unets.FAMILIES.items()},
    **{name: Family(*entry) for name, entry in transformers.FAMILIES.items()},
}
