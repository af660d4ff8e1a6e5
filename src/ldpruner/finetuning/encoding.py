"""Encodes pictures to the latents that a pipeline's scheduler steps, by inverting how the pipeline decodes them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from ldpruner.errors import FinetuningError
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.patches import patched_method, patched_step, preserved_dtype
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, networks, run_pipeline, schedulers

TOLERANCE = 1e-3  # relative error of the inversion, where the precision allows


@dataclass(frozen=True)
class Encoder:
    """A pipeline's autoencoder, and how its output becomes latents: `(encoded - shift) / scale`.

    Attributes:
        autoencoder: the network.
        size: channels, height and width of a picture.
        precision: in which the pipeline decodes, and so encodes: some pipelines raise it.
        scale, shift: of each channel, in the shape of latents.
    """

    autoencoder: nn.Module
    size: tuple[int, int, int]
    precision: torch.dtype
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The latents of pictures, which are cropped and resized to the pipeline's size: [pictures, ...]."""
        channels, height, width = self.size
        processor: Any = VaeImageProcessor(vae_scale_factor=1, do_convert_grayscale=channels == 1)
        converted = [picture.convert("L" if channels == 1 else "RGB") for picture in pictures]
        pixels = processor.preprocess(converted, height, width, resize_mode="crop")
        with preserved_dtype(self.autoencoder):
            self.autoencoder.to(self.precision)
            encode: Any = self.autoencoder.encode
            encoded = encode(pixels.to(module_device(self.autoencoder), self.precision))
        latents: Tensor = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
        return ((latents.cpu() - self.shift) / self.scale).float()


def find_encoder(pipeline: DiffusionPipeline, probe: Probe) -> Encoder:
    """Runs the pipeline for one sample and inverts how its latents are decoded.

    Raises:
        FinetuningError: nothing is decoded, or the latents are more than scaled and shifted before.
    """
    last, decoded, autoencoder, output = _record_decoding(pipeline, probe)
    name = type(pipeline).__name__
    advice = "finetune without data: the teacher's own samples are used"
    last = last[: len(decoded)]  # some pipelines step the unguided copy with the guided one
    if last.shape != decoded.shape or output.ndim != 4:
        raise FinetuningError(
            f"{name} rearranges its latents {tuple(last.shape)} to {tuple(decoded.shape)} before it decodes "
            f"{tuple(output.shape)}; data cannot be encoded for it yet, {advice}"
        )
    scale, shift = _fit_channels(last, decoded)
    tolerance = max(TOLERANCE, 8 * torch.finfo(last.dtype).eps, 8 * torch.finfo(decoded.dtype).eps)
    if float((last * scale + shift - decoded).norm()) > tolerance * float(decoded.norm()):
        raise FinetuningError(f"{name} does more than scale its latents before it decodes them; {advice}")
    _, channels, height, width = output.shape
    return Encoder(autoencoder, (channels, height, width), decoded.dtype, scale, shift)


def _record_decoding(pipeline: DiffusionPipeline, probe: Probe) -> tuple[Tensor, Tensor, nn.Module, Tensor]:
    """The scheduler's last latents, the decoder's input, the network that decodes, and its output."""
    stepped: list[Tensor] = []
    decodings: list[tuple[Tensor, nn.Module, Tensor]] = []
    with contextlib.ExitStack() as stack:
        for scheduler in schedulers(pipeline):
            stack.enter_context(patched_step(scheduler, _recording_step(type(scheduler).step, stepped)))
        for part in networks(pipeline).values():
            if all(callable(getattr(part, method, None)) for method in ("encode", "decode")):
                stack.enter_context(preserved_dtype(part))
                stack.enter_context(patched_method(part, "decode", _recording_decode(part, decodings)))
        run_pipeline(pipeline, probe.without("output_type").arguments(pipeline, [0]))
    if not stepped or not decodings:
        raise FinetuningError(f"{type(pipeline).__name__} decodes nothing that it could encode; finetune without data")
    latents, autoencoder, output = decodings[0]
    return stepped[-1].cpu(), latents.cpu(), autoencoder, output


def _recording_step(original: Any, results: list[Tensor]) -> Any:
    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        results.append(result[0])
        return result

    return step


def _recording_decode(part: Any, decodings: list[tuple[Tensor, nn.Module, Tensor]]) -> Any:
    """A `decode` that records its input and output, and stops the pipeline."""
    original = part.decode

    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        decodings.append((latents, part, original(latents, *args, **kwargs)[0]))
        raise StopPipeline

    return decode


def _fit_channels(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel by least squares, in the shape of latents: [1, channels, 1, ...]."""
    x, y = (latents.double().transpose(0, 1).flatten(1) for latents in (before, after))
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    scale = ((x - mean_x) * (y - mean_y)).sum(1, keepdim=True) / (x - mean_x).square().sum(1, keepdim=True)
    shape = (1, -1, *[1] * (before.ndim - 2))
    return scale.reshape(shape), (mean_y - scale * mean_x).reshape(shape)
