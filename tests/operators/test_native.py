"""What a class can say of a pruned network: fewer blocks, blocks without attention, no middle block."""

import copy
import warnings
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._pytree import tree_leaves

from ldpruner.operators.discovery import Removal, operators_of
from ldpruner.operators.native import NativeForm, native_form, native_groups
from ldpruner.pipelines.denoiser import Denoiser, find_denoiser
from ldpruner.pipelines.probe import Probe
from ldpruner.pruning.conversion import apply_native_
from ldpruner.stand_ins import remove_
from tests.families import FAMILIES


def denoiser_of(name: str) -> Denoiser:
    family = FAMILIES[name]
    pipeline = family.pipeline()
    probe = Probe(samples=1, steps=2, prompts=family.prompts, call=dict(family.call))
    return find_denoiser(pipeline, family.component, probe.arguments(pipeline, [0]))


def removals_of(denoiser: Denoiser, *names: str) -> list[Removal]:
    by_name = {operator.name: operator.candidates[-1].removal for operator in operators_of(denoiser)}
    return [by_name[name] for name in names]


def outputs(denoiser: Denoiser, network: Any) -> list[torch.Tensor]:
    arguments, options = copy.deepcopy((denoiser.arguments, denoiser.options))
    with torch.no_grad():
        output = network(*arguments, **options)
    leaves = tree_leaves(tuple(output.values()) if isinstance(output, dict) else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def expressed(denoiser: Denoiser, removals: list[Removal]) -> tuple[NativeForm, Any]:
    """The native form, and the network in it; checked against stand-ins, and against one built anew."""
    form = native_form(denoiser.module, removals)
    network = copy.deepcopy(denoiser.module)
    remove_(network, [removal.model_dump() for removal in removals])
    expected = outputs(denoiser, network)
    apply_native_(network, form)
    network_class: Any = type(network)
    built = network_class.from_config(network.config)
    built.load_state_dict(network.state_dict())
    for other in (network, built.eval()):
        assert all(torch.equal(*pair) for pair in zip(outputs(denoiser, other), expected, strict=True))
    return form, network


@pytest.mark.case(number=52)
def test_whole_blocks_of_flux_are_counts_of_its_configuration() -> None:
    denoiser = denoiser_of("flux")
    names = ("transformer_blocks.0", "single_transformer_blocks.1")
    form, network = expressed(denoiser, removals_of(denoiser, *names))
    original: Any = denoiser.module.config
    assert form.rest == ()
    assert network.config.num_layers == original.num_layers - 1
    assert network.config.num_single_layers == original.num_single_layers - 1
    assert [name for name, _ in network.transformer_blocks.named_children()] == ["0"]
    assert form.new_name("transformer_blocks.0.norm1") is None
    assert form.new_name("transformer_blocks.1.norm1.linear.weight") == "transformer_blocks.0.norm1.linear.weight"


def test_what_is_left_to_stand_ins_has_its_new_name() -> None:
    denoiser = denoiser_of("flux")
    names = ("transformer_blocks.0", "transformer_blocks.1.ff")
    form, network = expressed(denoiser, removals_of(denoiser, *names))
    assert [removal.operator for removal in form.rest] == ["transformer_blocks.0.ff"]
    assert type(network.transformer_blocks[0].ff).__name__ in ("Identity", "Zero")


def test_a_middle_block_and_attentions_of_a_u_net_are_in_its_block_types() -> None:
    denoiser = denoiser_of("stable-diffusion")
    network: Any = denoiser.module
    index = next(place for place, name in enumerate(network.config.up_block_types) if "CrossAttn" in name)
    attentions = [f"up_blocks.{index}.attentions.{place}" for place in range(len(network.up_blocks[index].attentions))]
    form, pruned = expressed(denoiser, removals_of(denoiser, "mid_block", *attentions))
    assert form.rest == ()
    assert pruned.mid_block is None
    assert pruned.config.up_block_types[index] == "UpBlock2D"
    assert type(pruned.up_blocks[index]).__name__ == "UpBlock2D"


def test_what_a_configuration_cannot_say_is_left_as_it_is() -> None:
    denoiser = denoiser_of("stable-diffusion")
    removals = removals_of(denoiser, "up_blocks.1.attentions.0")
    form = native_form(denoiser.module, removals)
    assert (form.removed, form.rest) == ((), tuple(removals))
    assert form.config == {name: value for name, value in denoiser.module.config.items() if not name.startswith("_")}  # type: ignore[union-attr,operator]


def test_groups_are_blocks_alone_and_all_attentions_of_a_u_net_block() -> None:
    flux, u_net = denoiser_of("flux"), denoiser_of("stable-diffusion")
    for denoiser, expected in (
        (flux, [("transformer_blocks.0",), ("single_transformer_blocks.1",)]),
        (u_net, [("mid_block",), ("up_blocks.1.attentions.0", "up_blocks.1.attentions.1")]),
    ):
        removals = [operator.candidates[-1].removal for operator in operators_of(denoiser)]
        groups = native_groups(denoiser.module, removals)
        assert set(expected) <= set(groups)
        form = native_form(denoiser.module, [removal for removal in removals if (removal.operator,) in groups][:1])
        assert form.rest == ()


def whole_blocks(denoiser: Denoiser) -> list[Removal]:
    """The first block of each list of blocks that can be removed."""
    chosen: dict[str, Removal] = {}
    for operator in operators_of(denoiser):
        path, _, index = operator.name.rpartition(".")
        if (
            index.isdigit()
            and "." not in path
            and isinstance(denoiser.module.get_submodule(path), torch.nn.ModuleList)
        ):
            for candidate in operator.candidates:
                if candidate.modification == "identity" and not candidate.cascaded:
                    chosen.setdefault(path, candidate.removal)
    return list(chosen.values())


# Their blocks depend on their position: residuals of a ControlNet, modulations, embeddings that the first block adds.
# A form is found that gives other outputs; `prune` compares them, and keeps the stand-ins.
BY_POSITION = {"chroma", "flux-controlnet", "latte", "stable-diffusion-3-controlnet", "wan-vace"}
WITHOUT_COUNT = {
    "hunyuan-dit",
    "hunyuan-dit-controlnet",
    "latent-upscaler",
    "stable-cascade",
}  # skip connections, lists that no field counts


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - BY_POSITION - WITHOUT_COUNT))
def test_the_first_block_of_each_list_of_every_family_is_native(name: str) -> None:
    denoiser = denoiser_of(name)
    form, _ = expressed(denoiser, whole_blocks(denoiser))
    assert form.rest == ()


def test_trying_configurations_says_nothing() -> None:
    """Three modules and no module left: some configuration has a kernel of 0, which torch warns of."""
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 2, "sample_size": 8}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DConditionModel(**sizes, **kinds, cross_attention_dim=8)
    gone = [Removal(operator=f"up_blocks.0.resnets.{place}", modification="identity") for place in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native_form(network, gone)
    assert not [warning for warning in caught if "zero-element" in str(warning.message)]
