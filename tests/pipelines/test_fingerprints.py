"""Networks differ in their architecture, their weights and their dtype."""

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from ldpruner.pipelines.fingerprints import architecture, count_parameters, module_dtype, weights_digest


def network(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))


def test_shared_weights_count_once() -> None:
    shared = nn.Linear(2, 3)
    assert count_parameters(nn.Sequential(shared, shared)) == count_parameters(shared, shared) == 2 * 3 + 3


@pytest.mark.gpu  # where diffusers uses bitsandbytes
def test_a_weight_of_four_bits_counts_as_before() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    packed = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4").to("cpu")
    assert packed.weight.numel() < 64 * 32
    assert count_parameters(packed) == 64 * 32


def test_a_weight_of_gguf_counts_as_before() -> None:
    from diffusers.quantizers.gguf.utils import GGUFParameter

    blocks = nn.ParameterList([GGUFParameter(torch.zeros(32, 68, dtype=torch.uint8), quant_type=8)])  # Q8_0: 34 of 32
    assert count_parameters(blocks) == 32 * 64


def test_blocks_are_lists_of_modules_with_parts() -> None:
    block = nn.ModuleList([network(), network()])
    whole = nn.ModuleDict({"blocks": block, "to_out": nn.ModuleList([nn.Linear(1, 1), nn.Dropout()])})
    assert architecture(whole).blocks == {"blocks": 2}


def test_an_architecture_depends_on_shapes_and_names_but_not_on_weights() -> None:
    changed = network()
    next(changed.parameters()).data += 1
    assert architecture(changed) == architecture(network())
    assert architecture(network(4)) != architecture(network())
    assert architecture(nn.ModuleDict({"0": nn.Linear(2, 3), "2": nn.Linear(3, 2)})) != architecture(network())


def test_one_changed_weight_changes_the_digest_and_the_dtype_does_not() -> None:
    changed, halved = network(), network().half().float()
    changed[1].bias.data[-1] += 1e-3  # type: ignore[index]
    assert weights_digest(network()) == weights_digest(network())
    assert weights_digest(changed) != weights_digest(network())
    assert weights_digest(halved.double()) == weights_digest(halved)


def test_the_digest_of_quantised_weights_is_that_of_their_parts() -> None:
    digests = []
    for change in (0.0, 0.0, 1.0):
        quantised = network()
        list(quantised.parameters())[2].data += change
        quantize_(quantised, Int8WeightOnlyConfig())
        digests.append(weights_digest(quantised))
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] != weights_digest(network())


def test_a_network_that_names_its_dtype_is_believed() -> None:
    class Mixed(nn.Linear):
        dtype = torch.float16

    assert module_dtype(Mixed(1, 1)) == torch.float16
    assert module_dtype(network().double()) == torch.float64
