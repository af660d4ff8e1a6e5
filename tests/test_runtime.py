"""The code that is copied beside pruned weights."""

import ast
import copy
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldpruner import runtime
from tests.conftest import tiny_unet

REMOVALS = [
    {"operator": "mid_block.resnets.0", "modification": "identity", "source": 0, "cascaded": []},
    {"operator": "down_blocks.1.resnets.0", "modification": "shortcut", "source": "conv_shortcut", "cascaded": []},
]


def test_the_joined_code_imports_nothing_of_ldpruner() -> None:
    tree = ast.parse(runtime.source_code())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {str(module).partition(".")[0] for module in modules} <= {
        *("collections", "contextlib", "functools", "inspect", "itertools", "logging", "pathlib", "re", "shutil"),
        *("tempfile", "typing", "diffusers", "huggingface_hub", "torch"),
    }


def test_no_name_is_defined_twice_in_the_joined_code() -> None:
    tree = ast.parse(runtime.source_code())
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names += [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    assert repeated <= {"logger"}


def test_a_pruned_class_replays_its_removals() -> None:
    pruned_class = runtime.pruned_class(UNet2DModel)
    assert runtime.pruned_class(UNet2DModel) is pruned_class
    pruned = pruned_class.from_config({**tiny_unet().config, "removals": REMOVALS})
    assert type(pruned.mid_block.resnets[0]).__name__ == "Identity"
    assert [name for name, _ in pruned.down_blocks[1].resnets[0].named_children()] == ["conv_shortcut"]
    assert pruned.config["removals"] == REMOVALS


@pytest.fixture
def pruned() -> Any:
    """A pruned network that can be changed."""
    torch.manual_seed(0)
    return runtime.pruned_class(UNet2DModel).from_config({**tiny_unet().config, "removals": REMOVALS}).eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("variant", [{}, {"variant": "fp16"}])
def test_a_saved_network_loads_bit_identically(
    pruned: Any, tmp_path: Path, shards: dict[str, str], variant: dict[str, str]
) -> None:
    pruned.save_pretrained(tmp_path, **shards, **variant)
    loaded = type(pruned).from_pretrained(tmp_path, **variant)
    assert same(loaded, pruned)
    assert not loaded.training
    assert loaded.config["_name_or_path"] == str(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or not shards


def test_a_network_is_saved_over_an_earlier_one(pruned: Any, tmp_path: Path) -> None:
    for options in ({"max_shard_size": "20KB"}, {}, {"max_shard_size": "20KB"}):
        with torch.no_grad():
            pruned.conv_in.weight.add_(1)
        pruned.save_pretrained(tmp_path, **options)
        assert same(type(pruned).from_pretrained(tmp_path), pruned)


def test_only_the_main_process_saves(pruned: Any, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.case(number=45)
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float64, "low_cpu_mem_usage": False}, torch.float64),
        ({"device_map": "cpu"}, torch.float32),
        ({"device_map": {"": "cpu"}, "use_safetensors": True}, torch.float32),
    ],
)
def test_options_do_what_they_do_in_diffusers(
    pruned: Any, tmp_path: Path, options: dict[str, Any], dtype: torch.dtype
) -> None:
    pruned.save_pretrained(tmp_path)
    loaded = type(pruned).from_pretrained(tmp_path, **options)
    assert loaded.dtype == dtype
    assert same(loaded, pruned.to(dtype).to(loaded.dtype))


@pytest.mark.case(number=45)
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"torch_dtpye": torch.float16}, TypeError),
        ({"variant": "ema"}, OSError),
        ({"use_safetensors": False}, OSError),
        ({"use_flashpack": True}, OSError),
        ({"quantization_config": {"quant_method": "none"}}, ValueError),
        ({"subfolder": "unet"}, OSError),
    ],
)
def test_an_option_that_cannot_be_followed_is_an_error(
    pruned: Any, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    pruned.save_pretrained(tmp_path)
    with pytest.raises(error):
        type(pruned).from_pretrained(tmp_path, **options)


@pytest.mark.case(number=45)
def test_changes_of_the_configuration_are_taken(pruned: Any, tmp_path: Path) -> None:
    pruned.save_pretrained(tmp_path)
    assert type(pruned).from_pretrained(tmp_path, norm_eps=0.5).config["norm_eps"] == 0.5


@pytest.mark.case(number=45)
def test_what_saving_cannot_do_is_an_error(pruned: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="push_to_hub"):
        pruned.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(ValueError, match="safetensors only"):
        pruned.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.case(number=45)
def test_a_network_of_the_hub_is_downloaded(pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pruned.save_pretrained(tmp_path / "unet")
    loaded = type(pruned).from_pretrained("owner/name", subfolder="unet", revision="main", token=None)
    assert same(loaded, pruned)
    assert asked == {"name": "owner/name", "allow_patterns": "unet/*", "revision": "main"}


def test_a_system_without_links_loads_copies(pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def symlink_to(*_: Any) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    pruned.save_pretrained(tmp_path)
    assert same(type(pruned).from_pretrained(tmp_path), pruned)


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True}])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("conv_in.weight"), "1 missing (conv_in.weight)"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (lambda state: state.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(  # noqa: PLR0917  (fixtures and parameters)
    pruned: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: str,
    options: dict[str, bool],
    change: Callable[[dict[str, torch.Tensor]], None],
    problem: str,
) -> None:
    state = pruned.state_dict()
    change(state)
    monkeypatch.setattr(type(pruned), "state_dict", lambda _: state)
    pruned.save_pretrained(tmp_path, max_shard_size=shards)
    monkeypatch.undo()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        type(pruned).from_pretrained(tmp_path, **options)
    assert problem in str(caught.value)


@pytest.mark.parametrize("spoil", ["adapter", "quantised"])
def test_weights_that_could_not_be_read_again_are_not_saved(pruned: Any, tmp_path: Path, spoil: str) -> None:
    if spoil == "adapter":
        pruned.conv_out.add_module("base_layer", nn.Identity())  # as PEFT wraps a module
    else:
        pruned.conv_out.weight = nn.Parameter(pruned.conv_out.weight.detach().as_subclass(Quantized))
    with pytest.raises(ValueError, match=spoil):
        pruned.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


class Quantized(torch.Tensor):
    """Stands in for the tensors of torchao and quanto."""


@pytest.mark.case(number=46)
def test_a_pruned_network_is_pickled_and_copied(pruned: Any) -> None:
    for other in (pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned), copy.copy(pruned)):  # noqa: S301
        assert type(other) is type(pruned)
        assert same(other, pruned)
        assert other.config == pruned.config


# Memory


class Allocations(TorchDispatchMode):
    """Notes the largest size of all that operations have allocated and that is still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for storage in (tensor.untyped_storage() for tensor in _tensors(outputs)):
            if storage.data_ptr() not in given:
                self._live[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return outputs


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and not leaf.is_meta]


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_loading_allocates_little_more_than_the_weights(pruned: Any, tmp_path: Path, shards: str) -> None:
    pruned.save_pretrained(tmp_path, max_shard_size=shards)
    size = sum(weight.nbytes for weight in pruned.parameters())
    with Allocations() as allocations:
        loaded = type(pruned).from_pretrained(tmp_path)
    assert same(loaded, pruned)
    assert allocations.peak <= 1.2 * size
    with Allocations() as allocations:
        type(pruned).from_config(pruned.config)
    assert allocations.peak >= size  # it sees what is allocated


LARGE = """
import sys
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.modeling_utils import no_init_weights
from ldpruner.runtime import pruned_class


def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


removals = [
    {"operator": f"single_transformer_blocks.{index}.attn", "modification": "zero", "source": 0, "cascaded": []}
    for index in (1, 4)
]
build = pruned_class(FluxTransformer2DModel)
if sys.argv[1] == "save":
    torch.set_default_dtype(torch.bfloat16)
    sizes = {"num_layers": 4, "num_single_layers": 7, "num_attention_heads": 16}
    with no_init_weights():
        build(**sizes, removals=removals).save_pretrained(sys.argv[2], max_shard_size="500MB")
else:
    before = status("VmRSS")
    network = build.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[1]))
    for weight in network.parameters():
        weight.detach().flatten()[::512].sum()  # touches every page of the file
    size = sum(weight.nbytes for weight in network.parameters())
    print(sum(weight.numel() for weight in network.parameters()), (status("VmHWM") - before) / size)
"""


@pytest.mark.extensive
def test_a_network_of_a_billion_weights_loads_in_little_more_than_its_size(tmp_path: Path) -> None:
    """In a fresh process, from shards, as it is saved and cast to twice its size."""

    def run(step: str) -> str:
        command = [sys.executable, "-c", LARGE, step, str(tmp_path / "large")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    try:
        run("save")
        for dtype in ("bfloat16", "float32"):
            weights, peak = run(dtype).split()
            assert int(weights) > 1e9
            assert float(peak) <= 1.2, dtype
    finally:
        shutil.rmtree(tmp_path / "large")


def test_casting_leaves_what_a_class_keeps_in_float32() -> None:
    class Mixed(nn.Module):
        _keep_in_fp32_modules = ("norm",)

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(2), nn.Linear(2, 2)
            self.register_buffer("steps", torch.arange(3))

    network: Any = Mixed()
    runtime.cast_(network, torch.float16)
    assert (network.norm.weight.dtype, network.linear.weight.dtype) == (torch.float32, torch.float16)
    assert network.steps.dtype == torch.int64
