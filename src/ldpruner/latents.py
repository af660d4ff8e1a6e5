"""Drawing latents: a probe says which, and a pipeline runs until its last step. Nothing is decoded."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from pydantic import Field, ValidationError, field_serializer, field_validator

from ldpruner.errors import ProbeError, one_line
from ldpruner.pipelines import (
    Interruption,
    accepted_arguments,
    overridden,
    run_pipeline,
    schedulers,
)
from ldpruner.values import Value

CLASSES = 1000  # of class-conditional pipelines: those of ImageNet


class Probe(Value):
    """How latents are drawn: the same for every operator, and for every machine.

    Each sample has its own seed, so that it depends neither on the batch that it is drawn in nor on the
    other samples.

    Attributes:
        samples: how many latents (m in the paper).
        steps: denoising steps of each (k in the paper).
        seed: from which the samples' own seeds are made.
        prompts: for text pipelines, a sequence or the path of a text file with one on each line; sample i takes
            prompt i, starting again when they run out.
        guidance: the scale of classifier-free guidance; None leaves it to the pipeline.
        call: further arguments of the pipeline's call.
    """

    samples: int = Field(default=16, ge=1)
    steps: int = Field(default=25, ge=1)
    seed: int = Field(default=0, ge=0)
    prompts: tuple[str, ...] | None = None
    guidance: float | None = None
    call: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            problem = error.errors()[0]
            raise ProbeError(f"probe {problem['loc'][0]}={problem['input']!r}: {problem['msg']}") from error

    @field_validator("prompts", mode="before")
    @classmethod
    def _read_prompts(cls, prompts: Any) -> Any:
        if not isinstance(prompts, (str, Path)):
            return prompts
        try:
            lines = Path(prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ProbeError(f"probe prompts={str(prompts)!r}: {one_line(error)}; give a text file") from error
        found = tuple(line for line in lines if line.strip())
        if not found:
            raise ProbeError(f"probe prompts={str(prompts)!r}: the file holds no prompt; write one on each line")
        return found

    def sample_seed(self, index: int) -> int:
        """The seed of one sample, the same on every machine."""
        (state,) = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)
        return int(state >> np.uint64(1))

    def arguments(self, pipeline: DiffusionPipeline, samples: Sequence[int]) -> dict[str, Any]:
        """What to call a pipeline with to draw the samples of these indices in one batch."""
        generators = [torch.Generator().manual_seed(self.sample_seed(index)) for index in samples]
        wanted: dict[str, Any] = {"num_inference_steps": self.steps, "steps": self.steps, "generator": generators}
        per_sample = accepted_arguments(
            pipeline,
            {
                "prompt": [self._prompt(index) for index in samples],
                "class_labels": [index % CLASSES for index in samples],
            },
        )
        wanted |= per_sample or {"batch_size": len(samples)}
        if self.guidance is not None:
            wanted["guidance_scale"] = self.guidance
        call = {name: _repeated(name, value, len(samples)) for name, value in self.call.items()}
        return accepted_arguments(pipeline, {**wanted, **call})

    def _prompt(self, index: int) -> str:
        return self.prompts[index % len(self.prompts)] if self.prompts else ""

    @field_serializer("call", when_used="json")
    def _call_as_json(self, call: dict[str, Any]) -> dict[str, Any]:
        return {name: _as_json(value) for name, value in call.items()}


def _repeated(name: str, value: Any, count: int) -> Any:
    """A text or a class label that stands for every sample, once for each."""
    if "prompt" in name and isinstance(value, str):
        return [value] * count
    if name == "class_labels" and len(value) == 1:
        return list(value) * count
    return value


def _as_json(value: Any) -> Any:
    """The value itself where JSON has it; of an image or a tensor, what tells it from another."""
    try:
        json.dumps(value)
    except TypeError:
        digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=8).hexdigest()
        return f"{type(value).__name__} {digest}"
    return value


def draw_latents(pipeline: DiffusionPipeline, probe: Probe, samples: Sequence[int]) -> torch.Tensor:
    """Runs a pipeline on some samples of a probe and returns their final latents.

    The run is left before anything is decoded.

    Returns:
        [samples, ...]: what the scheduler's last step returned.

    Raises:
        ProbeError: the pipeline drew fewer samples than asked.
    """
    last: list[torch.Tensor] = []

    def leave(*_: Any, **__: Any) -> None:
        raise Interruption

    with contextlib.ExitStack() as stack:
        for scheduler in schedulers(pipeline):
            step = scheduler.step

            def keep(*arguments: Any, _step: Any = step, **options: Any) -> Any:
                result = _step(*arguments, **options)
                last[:] = [result[0] if isinstance(result, tuple) else result.prev_sample]
                return result

            stack.enter_context(overridden(scheduler, "step", keep))
        for part in pipeline.components.values():
            if hasattr(part, "decode") and isinstance(part, torch.nn.Module):
                stack.enter_context(overridden(part, "decode", leave))
        run_pipeline(pipeline, probe.arguments(pipeline, samples))
    if not last or len(last[0]) < len(samples):
        raise ProbeError(
            f"{type(pipeline).__name__} drew {len(last[0]) if last else 0} samples where {len(samples)} were asked; "
            f"look at the probe's call arguments {sorted(probe.call)}"
        )
    return last[0][: len(samples)]  # some pipelines step the guided and the unguided half together
