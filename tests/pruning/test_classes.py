"""diffusers finds the classes of pruned and of moved components under these names."""

import diffusers
import pytest

from ldpruner.errors import PipelineNotFound
from ldpruner.pruning import classes
from ldpruner.runtime import pruned_class


def test_a_pruned_class_is_found_by_the_entry_of_its_folder() -> None:
    assert getattr(classes, "prunedunet2dmodel.PrunedUNet2DModel") is pruned_class(diffusers.UNet2DModel)


def test_a_moved_class_is_found() -> None:
    assert getattr(classes, "audio_diffusion.Mel").__name__ == "Mel"


def test_parents_are_those_of_diffusers() -> None:
    assert getattr(classes, "ModelMixin") is diffusers.ModelMixin  # noqa: B009  (as diffusers looks for it)
    assert not hasattr(classes, "PreTrainedModel")


@pytest.mark.parametrize(
    "name", ["PrunedTeapot", "Pruned", "PrunedLDMPipeline", "PrunedDDIMScheduler", "Prunedlogging"]
)
def test_a_name_of_no_network_is_refused(name: str) -> None:
    with pytest.raises(PipelineNotFound, match="has no network class"):
        getattr(classes, f"pruned.{name}")
