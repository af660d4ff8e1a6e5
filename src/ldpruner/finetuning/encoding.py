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
from ldpruner.evaluation.media import rgb
from ldpruner.pipelines.offload import module_device
from ldpruner.pipelines.patches import patched
from ldpruner.pipelines.probe import Probe
from ldpruner.pipelines.running import StopPipeline, networks
from ldpruner.pipelines.sampling import sample_decoded
from ldpruner.pipelines.state import evaluation_mode

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
        converted = [rgb(picture).convert("L" if channels == 1 else "RGB") for picture in pictures]
        pixels = processor.preprocess(converted, height, width, resize_mode="crop")
        with evaluation_mode(self.autoencoder):
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
    if last.shape != decoded.shape or output.ndim != 4:
        raise FinetuningError(
            f"{name} rearranges its latents {tuple(last.shape)} to {tuple(decoded.shape)} before it decodes "
            f"{tuple(output.shape)}; data cannot be encoded for it yet, {advice}"
        )
    others = [dim for dim in range(last.ndim) if dim != 1]  # scale and shift are those of each channel
    std, mean = torch.std_mean(last.double(), others, keepdim=True)
    decoded_std, decoded_mean = torch.std_mean(decoded.double(), others, keepdim=True)
    scale = decoded_std / std
    shift = decoded_mean - scale * mean
    tolerance = max(TOLERANCE, 8 * torch.finfo(last.dtype).eps, 8 * torch.finfo(decoded.dtype).eps)
    if float((last * scale + shift - decoded).norm()) > tolerance * float(decoded.norm()):
        raise FinetuningError(f"{name} does more than scale its latents before it decodes them; {advice}")
    _, channels, height, width = output.shape
    return Encoder(autoencoder, (channels, height, width), decoded.dtype, scale, shift)


def _record_decoding(pipeline: DiffusionPipeline, probe: Probe) -> tuple[Tensor, Tensor, nn.Module, Tensor]:
    """The scheduler's last latents, the decoder's input, the network that decodes, and its output."""
    decodings: list[tuple[Tensor, nn.Module, Tensor]] = []

    def recording(autoencoder: Any) -> Any:
        original = autoencoder.decode

        def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            decodings.append((latents.cpu(), autoencoder, original(latents, *args, **kwargs)[0]))
            raise StopPipeline

        return decode

    with contextlib.ExitStack() as stack:
        for part in networks(pipeline).values():
            if hasattr(part, "encode") and hasattr(part, "decode"):
                stack.enter_context(patched(part, decode=recording(part)))
        last, _ = sample_decoded(pipeline, probe, [0])
    if not decodings:
        raise FinetuningError(f"{type(pipeline).__name__} decodes nothing that it could encode; finetune without data")
    return last.cpu(), *decodings[0]
