"""diffusers' own `push_to_hub` of what is pruned is that of a plain pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, UNet2DModel

from tests.hub_server import Hub, hub
from tests.pruning.conftest import latents, pruned

__all__ = ["hub", "pruned"]

REPO = "somebody/small"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content="),  # huggingface_hub's own, of its HTTP library
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument"),  # diffusers' own
]


def files(hub: Hub) -> dict[str, bytes]:
    (commit,) = hub.repositories[REPO].commits
    content = hub.repositories[REPO].branches["main"]
    assert commit.added == content.keys()
    return content


def test_a_pruned_pipeline_is_pushed_as_a_plain_one_and_opens_by_its_name(
    hub: Hub, tiny: DiffusionPipeline, pruned: DiffusionPipeline
) -> None:
    pruned.push_to_hub(REPO)
    pushed = files(hub)
    expected = latents(pruned)
    assert torch.equal(latents(DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)), expected)

    tiny.push_to_hub("somebody/plain")
    plain = hub.repositories["somebody/plain"].branches["main"]
    own = {"unet/prunedunet2dmodel.py", "unet/model.safetensors"}
    assert pushed.keys() - plain.keys() == own
    assert plain.keys() - pushed.keys() == {"unet/diffusion_pytorch_model.safetensors"}


def test_saving_a_pruned_pipeline_pushes_it_too(hub: Hub, pruned: DiffusionPipeline, tmp_path: Path) -> None:
    pruned.save_pretrained(str(tmp_path / "saved"), push_to_hub=True, repo_id=REPO, private=True)
    assert hub.repositories[REPO].private
    received = hub.repositories[REPO].write(tmp_path / "received")
    opened = DiffusionPipeline.from_pretrained(received, trust_remote_code=True)
    assert torch.equal(latents(opened), latents(pruned))
    assert set(files(hub)) == {
        path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*") if path.is_file()
    }


def assert_opens(network: Any) -> None:
    opened: Any = AutoModel.from_pretrained(REPO, trust_remote_code=True)
    assert type(opened).__name__ == "PrunedUNet2DModel"
    assert all(torch.equal(weight, opened.state_dict()[name]) for name, weight in network.state_dict().items())
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        UNet2DModel.from_pretrained(REPO)  # never with random weights in the gaps


def test_a_pruned_network_is_pushed_alone(hub: Hub, pruned: Any) -> None:
    pruned.unet.push_to_hub(REPO)
    assert files(hub).keys() == {"README.md", "config.json", "model.safetensors", "prunedunet2dmodel.py"}
    assert_opens(pruned.unet)
