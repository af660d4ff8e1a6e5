"""Where something was measured."""

import torch
from diffusers import DiffusionPipeline

from ldpruner.pipelines.denoiser import find_denoiser
from ldpruner.profiling.machine import machine_of


def test_a_machine_has_a_device_a_precision_threads_and_versions(fresh: DiffusionPipeline) -> None:
    network = find_denoiser(fresh).module
    machine = machine_of(network)
    assert machine == machine_of(network)
    count = torch.get_num_threads()
    assert str(machine) == f"cpu with {count} thread{'s' * (count > 1)} in float32"
    assert machine.versions["torch"] == torch.__version__
    assert machine_of(network.half()).precision == "float16"
