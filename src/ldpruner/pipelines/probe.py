"""The probe: which samples are compared, the same for every operator and on every machine."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from pydantic import AfterValidator, Field, field_serializer, field_validator, model_validator

from ldpruner.errors import ProbeError, shown
from ldpruner.pipelines.call_values import as_json, digests_in, from_json
from ldpruner.pipelines.prompts import read_prompts
from ldpruner.pipelines.running import accepted_arguments, check_arguments, networks
from ldpruner.values import MAX_COUNT, Settings

ROWS = ("prompt", "embed", "latents")  # in the names of tensors with a row for each sample
CLASSES = 1000  # of class-conditional pipelines: those of ImageNet
# Arguments of a pipeline's call that a setting of the probe gives.
SET_BY = {"num_inference_steps": "steps", "steps": "steps", "generator": "seed", "batch_size": "samples"}
SIZE = {"height": None, "width": None}
UNSETTABLE = {**SET_BY, "return_dict": ""}

# For text pipelines without prompts. With an empty prompt, guidance and all that reads the text would do nothing.
GENERAL_PROMPTS = (
    "a brown dog running on the grass",
    "a portrait of an old woman with a hat",
    "snow on high mountains under a blue sky",
    "a bowl of soup beside bread and red tomatoes",
    "a yellow bus in a busy street at night",
    "children playing with a ball on the beach",
    "an oil painting of ships on a stormy sea",
    "a black cat asleep on a green sofa",
    "a wooden house at the edge of a forest",
    "a drawing of a smiling face",
    "two horses pulling a cart of hay",
    "a vase of white flowers by the window",
    "a man playing a guitar on a stage",
    "a glass tower in the rain",
    "a red apple and a knife on a table",
    "a flock of birds over a lake at sunset",
)


def _as_tuple(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    if texts is not None and not texts:
        raise ValueError("at least one prompt")
    return tuple(texts) if texts is not None else None


class Probe(Settings):
    """Which samples the pipeline generates, the same for every operator and on every machine.

    Each sample has its own seed, so that it depends neither on its batch nor on the other samples.

    Attributes:
        samples: number of samples (m in the paper).
        steps: denoising steps of each (k in the paper).
        seed: each sample derives its own seed from it.
        prompts: for text pipelines, a sequence or the path of a file (see `read_prompts`). Sample i takes prompt i;
            the prompts start again when they run out.
        categories: of each prompt, by which an evaluation groups its metrics; a file of prompts brings its own.
        guidance: scale of classifier-free guidance; None keeps the default of the pipeline.
        call: further arguments of the call of the pipeline, such as `height`. Texts (`negative_prompt`), images and
            rows of tensors (`image_embeds`) may be one for all samples, or several that are used in turn. JSON keeps
            the type and a digest of an image or a tensor: a probe that is read back has to be given it again.
    """

    noun = "probe"
    error = ProbeError

    samples: int = Field(default=16, ge=1, le=MAX_COUNT)
    steps: int = Field(default=25, ge=1, le=MAX_COUNT)
    seed: int = Field(default=0, ge=0, lt=2**63)
    prompts: Annotated[Sequence[str] | Path | None, AfterValidator(_as_tuple)] = None
    categories: Annotated[Sequence[str] | None, AfterValidator(_as_tuple)] = None
    guidance: float | None = None
    call: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read_prompts(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(path := fields.get("prompts"), (str, Path)):
            return fields
        prompts = read_prompts(path)
        return {**fields, "prompts": prompts.texts, "categories": prompts.categories}

    @field_validator("call")
    @classmethod
    def _read_call(cls, call: dict[str, Any]) -> dict[str, Any]:
        for argument, setting in UNSETTABLE.items():
            if argument in call:
                hint = f"it is the probe's setting {setting!r}" if setting else "leave it out"
                raise ProbeError(f"probe call {argument}={shown(call[argument])}: {hint}")
        return {name: from_json(name, value) for name, value in call.items()}

    @model_validator(mode="after")
    def _refuse_settings_twice(self) -> "Probe":
        for setting, argument in {"guidance": "guidance_scale", "prompts": "prompt"}.items():
            if getattr(self, setting) is not None and self.call.get(argument) is not None:
                raise ProbeError(f"probe {setting} and call {argument!r} are given; choose one")
        return self

    @model_validator(mode="after")
    def _check_categories(self) -> "Probe":
        prompts = self.prompts if isinstance(self.prompts, tuple) else ()
        if self.categories is not None and len(self.categories) != len(prompts):
            raise ProbeError(f"probe has {len(self.categories)} categories for {len(prompts)} prompts; give each one")
        return self

    def sample_seed(self, index: int) -> int:
        """The seed of one sample, the same on every machine."""
        (state,) = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)
        return int(state >> np.uint64(1))

    def prompt(self, index: int) -> str | None:
        """The prompt of one sample."""
        prompts = tuple(self.prompts) if isinstance(self.prompts, Sequence) else ()
        return prompts[index % len(prompts)] if prompts else None

    def category(self, index: int) -> str | None:
        """The category of the prompt of one sample."""
        return self.categories[index % len(self.categories)] if self.categories else None

    def sample_settings(self) -> list[dict[str, Any]]:
        """The seed of each sample, and its prompt if there is one."""
        rows = [{"seed": self.sample_seed(index), "prompt": self.prompt(index)} for index in range(self.samples)]
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def without(self, argument: str) -> "Probe":
        """The probe without one argument of the call."""
        return self.replace(call={name: value for name, value in self.call.items() if name != argument})

    def completed(self, pipeline: DiffusionPipeline) -> "Probe":
        """The probe with general prompts, if the pipeline takes prompts and the probe has none."""
        takes_prompts = bool(accepted_arguments(pipeline, {"prompt": ""}))
        has_prompts = self.prompts is not None or any(name.startswith("prompt") for name in self.call)
        return self.replace(prompts=GENERAL_PROMPTS) if takes_prompts and not has_prompts else self

    def arguments(self, pipeline: DiffusionPipeline, samples: Sequence[int]) -> dict[str, Any]:
        """The arguments with which a pipeline generates the samples of these indices in one batch.

        Raises:
            ProbeError: see `check`.
        """
        self.check(pipeline)
        generators = [torch.Generator().manual_seed(self.sample_seed(index)) for index in samples]
        generator = generators[0] if len(generators) == 1 else generators
        settings: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "steps": self.steps,
            "generator": generator,
            "batch_size": len(samples),
        }
        per_sample = {"prompt": self.completed(pipeline).prompts, "class_labels": range(CLASSES), **self.call}
        arguments = accepted_arguments(
            pipeline, {name: _of_samples(name, value, samples) for name, value in per_sample.items()}
        )
        if self.guidance is not None:
            settings["guidance_scale"] = self.guidance
        return {**accepted_arguments(pipeline, settings), **arguments}

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Checks that the pipeline's call takes all of this.

        Raises:
            ProbeError: it takes no such argument, no prompts or no guidance; or this probe was read from JSON, and an
                image or a tensor is not there.
        """
        check_arguments(pipeline, self.call)
        for setting, argument in {"prompts": "prompt", "guidance": "guidance_scale"}.items():
            if getattr(self, setting) is not None and not accepted_arguments(pipeline, {argument: None}):
                raise ProbeError(f"{type(pipeline).__name__} takes no {setting}; leave out {setting}")
        if ("height" in self.call) != ("width" in self.call) and len(accepted_arguments(pipeline, SIZE)) == len(SIZE):
            raise ProbeError(f"probe call {self.call}: many pipelines ignore one of height and width; give both")
        self.check_complete()

    def check_complete(self) -> None:
        """Raises ProbeError if this probe was read from JSON, and an image or a tensor of its call is not there."""
        for name, value in self.call.items():
            if digests := digests_in(value):
                types = ", ".join(digest.type for digest in digests)
                raise ProbeError(
                    f"the run was made with {name}={types}, which its files do not hold; "
                    f"give it again: --pipeline-arg {name}=PATH, or Probe(call={{{name!r}: ...}})"
                )

    def with_call(self, call: Mapping[str, Any]) -> "Probe":
        """The probe with other arguments of the call.

        Raises:
            ProbeError: an image or a tensor that was read from JSON is given again, but is another one.
        """
        for name, value in call.items():
            if digests_in(earlier := self.call.get(name)) and as_json(value) != as_json(earlier):
                raise ProbeError(f"{name}={shown(value)} is not what the run was made with; give the same")
        return self.replace(call={**self.call, **call})

    @field_serializer("call", when_used="json")
    def _call_as_json(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {name: as_json(value) for name, value in call.items()}


def default_size(pipeline: DiffusionPipeline) -> tuple[int, int] | None:
    """The height and the width in pixels of what a pipeline makes if its call names none; None if it does not say.

    Diffusers has both in the signature of the call, or multiplies a size in latents by the autoencoder's scale.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if not SIZE.keys() <= parameters.keys():
        return None
    height, width = (parameters[name].default for name in SIZE)
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    configured = [network.config for network in networks(pipeline).values() if isinstance(network, ModelMixin)]
    sides = [getattr(config, "sample_size", None) for config in configured]
    own, scale = (getattr(pipeline, name, None) for name in ("default_sample_size", "vae_scale_factor"))
    # The size of the denoiser is the smallest: that of the autoencoder is in pixels.
    latents = own or min((side for side in sides if isinstance(side, int)), default=None)
    return (latents * scale,) * 2 if isinstance(latents, int) and isinstance(scale, int) else None


def _is_of_samples(name: str, value: Any) -> bool:
    """Whether an argument has a value for each sample: texts, labels, rows, and images except those of an adapter."""
    first = value[0] if isinstance(value, (list, tuple, range)) and len(value) else value
    if name == "class_labels":
        return isinstance(first, (int, torch.Tensor))
    if isinstance(value, torch.Tensor):
        return value.ndim >= 4 or (value.ndim >= 2 and any(part in name for part in ROWS))
    if name.startswith("ip_adapter"):
        return False
    if isinstance(first, torch.Tensor):
        return any(part in name for part in (*ROWS, "image"))
    is_text = isinstance(first, str) and name.startswith(("prompt", "negative_prompt"))
    return is_text or (isinstance(first, Image.Image) and "image" in name)


def _of_samples(name: str, value: Any, samples: Sequence[int]) -> Any:
    """The values of some samples, from one value for all or from several that are used in turn.

    A single sample gets a bare value, as some pipelines take no lists; labels and lists of tensors stay lists.
    """
    if not _is_of_samples(name, value):
        return value
    if isinstance(value, torch.Tensor) and name != "class_labels":
        return value[[index % len(value) for index in samples]]
    values = value.flatten().tolist() if isinstance(value, torch.Tensor) else value
    values = values if isinstance(values, (list, tuple, range)) else [values]
    chosen = [values[index % len(values)] for index in samples]
    is_bare = len(chosen) == 1 and name != "class_labels" and not isinstance(chosen[0], torch.Tensor)
    return chosen[0] if is_bare else chosen
