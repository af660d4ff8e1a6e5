"""Encodes pictures, videos and sounds to the latents of a pipeline, by inverting how it decodes them."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn

from ldpruner.errors import FinetuningError, one_line
from ldpruner.evaluation.media import rgb
from ldpruner.finetuning.dataset import Media
from ldpruner.finetuning.rearrangement import TOLERANCE, Rearrangement, find_rearrangement
from ldpruner.finetuning.steps import running_once
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, networks, schedulers
from ldpruner.pipelines.sampling import FAILURES, sample_decoded
from ldpruner.pipelines.state import evaluation_mode
from ldpruner.runtime import cast_

PICTURE, VIDEO, SOUND = 4, 5, 3  # dimensions of what an autoencoder decodes
LEVEL = 1 / 128  # of pixels, which may be rounded to 8 bits


@dataclass(frozen=True)
class Encoder:
    """A pipeline's autoencoder, and how the pipeline rearranges latents before it decodes them.

    Attributes:
        autoencoder: the network; None where latents are pixels.
        decoded: shape of what it decodes for one sample: [frames, channels, height, width], [1, channels, frames,
            height, width] or [1, channels, time].
        precision: in which the pipeline decodes, and so encodes: some pipelines raise it.
        rearrangement: from latents to what is decoded.
    """

    autoencoder: nn.Module | None
    decoded: torch.Size
    precision: torch.dtype
    rearrangement: Rearrangement

    @torch.no_grad()
    def __call__(self, media: Sequence[Media]) -> Tensor:
        """The latents of pictures, videos or sounds, [media, ...].

        Frames are cropped and resized to the pipeline's size. A still picture is a video that does not move.
        Of a video or a sound, the beginning is taken; a short video stays at its last frame, a short sound ends in
        silence.

        Raises:
            FinetuningError: a sound is given where pictures are decoded, or the other way round.
        """
        values = [self._values(item) for item in media]
        # videos are large, and some autoencoders take one at a time
        batches = values if len(self.decoded) == VIDEO else [torch.cat(values)]
        encoded = torch.cat([self._encoded(batch) for batch in batches])
        if encoded.numel() != len(media) * len(self.rearrangement.places):
            raise FinetuningError(
                f"the autoencoder encodes {tuple(values[0].shape)} as {tuple(encoded.shape[1:])}, which does not fit "
                f"latents {tuple(self.rearrangement.shape)}; finetune without data"
            )
        return self.rearrangement.inverse(encoded.cpu().reshape(len(media), -1))

    def _encoded(self, values: Tensor) -> Tensor:
        """What the autoencoder makes of pixels or sounds in the shape of what it decodes."""
        if self.autoencoder is None:
            return values
        values = values.to(module_device(self.autoencoder), self.precision)
        cast_(self.autoencoder, self.precision)
        with evaluation_mode(self.autoencoder):
            encode: Any = self.autoencoder.encode
            # some sample from what they encode unless told otherwise
            mode = {"sample_posterior": False} if "sample_posterior" in inspect.signature(encode).parameters else {}
            try:
                output = encode(values, **mode)
            except FAILURES as error:
                raise FinetuningError(
                    f"the autoencoder cannot encode {tuple(values.shape)}: {one_line(error)}; finetune without data"
                ) from error
        encoded: Tensor = output.latent_dist.mode() if "latent_dist" in output else output[0]
        return encoded

    def _values(self, item: Media) -> Tensor:
        """A picture, a video or a sound in the shape of what is decoded."""
        if isinstance(item, np.ndarray) != (len(self.decoded) == SOUND):
            raise FinetuningError(
                f"the pipeline decodes {tuple(self.decoded)}, which is no "
                f"{'sound' if isinstance(item, np.ndarray) else 'picture'}; finetune without data"
            )
        if isinstance(item, np.ndarray):
            _, channels, length = self.decoded
            sound = torch.from_numpy(item).float()[:, :length]
            sound = sound if len(sound) == channels else sound.mean(0, keepdim=True).expand(channels, -1)
            return torch.nn.functional.pad(sound, (0, length - sound.shape[1]))[None]
        is_video = len(self.decoded) == VIDEO
        count, channels = (self.decoded[2], self.decoded[1]) if is_video else self.decoded[:2]
        frames = list(item) if isinstance(item, Sequence) else [item]
        frames = [frames[min(place, len(frames) - 1)] for place in range(count)]
        height, width = self.decoded[-2:]
        processor: Any = VaeImageProcessor(vae_scale_factor=1, do_convert_grayscale=channels == 1)
        converted = [rgb(frame).convert("L" if channels == 1 else "RGB") for frame in frames]
        pixels: Tensor = processor.preprocess(converted, height, width, resize_mode="crop")
        return pixels.transpose(0, 1)[None] if is_video else pixels


def find_encoder(pipeline: DiffusionPipeline, probe: Probe) -> Encoder:
    """Runs the pipeline for one sample, and then again with numbered latents in networks that run only once.

    Raises:
        FinetuningError: nothing is decoded, or the latents are more than rearranged, scaled and shifted before.
    """
    name, watch = type(pipeline).__name__, _Decoding(pipeline, probe)
    autoencoders = {id(part) for part in networks(pipeline).values() if _is_autoencoder(part)}
    with running_once(part for part in networks(pipeline).values() if id(part) not in autoencoders):
        last = watch.run()
        if not watch.decodings:
            return _pixels(watch, last.shape[1:], name)
        inputs, autoencoder, decoded = watch.decodings[0]
        decoded = torch.cat([part for _, _, part in watch.decodings])
        tolerance = max(TOLERANCE, 8 * torch.finfo(last.dtype).eps, 8 * torch.finfo(inputs.dtype).eps)
        rearrangement = find_rearrangement(watch.decoder_input, last.shape[1:], tolerance)
    if rearrangement is None or decoded.ndim not in (PICTURE, VIDEO, SOUND):
        raise FinetuningError(
            f"{name} does more than rearrange and scale its latents {tuple(last.shape)} before it decodes "
            f"{tuple(decoded.shape)}; data cannot be encoded for it, finetune without data"
        )
    return Encoder(autoencoder, decoded.shape, inputs.dtype, rearrangement)


def _pixels(watch: "_Decoding", shape: torch.Size, pipeline: str) -> Encoder:
    """The encoder of a pipeline whose latents are pixels in -1 to 1."""
    count = shape.numel()
    latents = torch.linspace(-0.9, 0.9, count).reshape(1, *shape)
    pictures = watch.output_of(latents)[0]
    if not isinstance(pictures, Tensor):
        pictures = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    pictures = pictures / 255 if pictures.dtype == torch.uint8 else pictures
    pictures = (
        pictures.permute(0, 3, 1, 2) if pictures.shape != latents.shape and pictures.ndim == PICTURE else pictures
    )
    if pictures.shape != latents.shape or float((pictures - latents / 2 - 0.5).abs().max()) > LEVEL:
        raise FinetuningError(f"{pipeline} decodes nothing that it could encode; finetune without data")
    same = Rearrangement(shape, torch.arange(count), torch.ones(count).double(), torch.zeros(count).double())
    return Encoder(None, latents.shape, torch.float32, same)


def _is_autoencoder(part: nn.Module) -> bool:
    return hasattr(part, "encode") and hasattr(part, "decode")


class _Decoding:
    """Runs a pipeline with other last latents, and keeps what its autoencoder decodes."""

    def __init__(self, pipeline: DiffusionPipeline, probe: Probe) -> None:
        self.pipeline, self.probe = pipeline, probe
        self.decodings: list[tuple[Tensor, nn.Module, Tensor]] = []  # inputs, network and outputs of a first run
        self._outputs: list[Any] = []
        self._scheduler: Any = None  # the one that steps last

    def run(self) -> Tensor:
        """The last latents, [1, ...]."""
        with contextlib.ExitStack() as stack:
            for scheduler in schedulers(self.pipeline):
                stack.enter_context(patched(scheduler, step=self._watched(scheduler)))
            for part in filter(_is_autoencoder, networks(self.pipeline).values()):
                stack.enter_context(patched(part, decode=self._recorded(part)))
            last, _ = sample_decoded(self.pipeline, self.probe, [0])
        return last.cpu()

    def decoder_input(self, latents: Tensor) -> Tensor:
        """What the pipeline gives its autoencoder for last latents [1, ...]."""
        inputs: list[Tensor] = []

        def decode(values: Tensor, *_: Any, **__: Any) -> Any:
            inputs.append(values.cpu())
            if len(inputs) == len(self.decodings):
                raise StopPipeline
            return self._outputs[len(inputs) - 1]

        with contextlib.ExitStack() as stack:
            for part in filter(_is_autoencoder, networks(self.pipeline).values()):
                stack.enter_context(patched(part, decode=decode))
            self.output_of(latents)
        return torch.cat(inputs)

    def output_of(self, latents: Tensor) -> Any:
        """What the pipeline returns for last latents [1, ...]."""
        with patched(self._scheduler, step=_replacing(self._scheduler.step, latents)):
            return sample_decoded(self.pipeline, self.probe, [0])[1]

    def _watched(self, scheduler: Any) -> Callable[..., Any]:
        original = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            self._scheduler = scheduler
            return original(*args, **kwargs)

        return step

    def _recorded(self, autoencoder: Any) -> Callable[..., Any]:
        original = autoencoder.decode

        def decode(values: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(values, *args, **kwargs)
            self.decodings.append((values.cpu(), autoencoder, output[0]))
            self._outputs.append(output)
            return output

        return decode


def _replacing(original: Callable[..., Any], latents: Tensor) -> Callable[..., Any]:
    """A scheduler's step with other latents: as rows of frames, or once more for guidance, where it steps these."""

    def step(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        own = output[0] if isinstance(output, tuple) else output.prev_sample
        values = latents.to(own.device, own.dtype)
        values = values.reshape(own.shape) if values.numel() == own.numel() else values.expand_as(own).clone()
        if isinstance(output, tuple):
            return (values, *output[1:])
        output.prev_sample = values
        return output

    return step
