"""Where something was measured."""

from importlib.metadata import version

import torch
from torch import nn

from ldpruner.pipelines.fingerprints import module_dtype
from ldpruner.pipelines.offload import module_device
from ldpruner.values import Value

PACKAGES = ("torch", "diffusers")


class Machine(Value):
    """Where times were measured: those of two machines do not compare.

    Attributes:
        device: `cpu`, or the name of the accelerator.
        precision: of the denoiser's weights.
        threads: with which the CPU computes; None on other devices.
        versions: of torch and diffusers.
    """

    device: str
    precision: str
    threads: int | None = None
    versions: dict[str, str]

    def __str__(self) -> str:
        threads = "" if self.threads is None else f" with {self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.device}{threads} in {self.precision}"


def machine_of(denoiser: nn.Module) -> Machine:
    """Where a network computes."""
    device = module_device(denoiser)
    return Machine(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        precision=str(module_dtype(denoiser)).removeprefix("torch."),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        versions=installed_versions(),
    )


def installed_versions() -> dict[str, str]:
    """The versions of the packages on which latents and times depend."""
    return {name: version(name) for name in PACKAGES}
