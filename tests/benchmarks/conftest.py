"""The data of a model of the zoo, in little."""

from pathlib import Path

import pytest
import torch

from tests.zoo.test_training import write_data
from zoo.data import Images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with `satellite/train.zip` and `test.zip`, twelve pictures of noise each."""
    pixels = torch.randint(0, 256, (12, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    folder = tmp_path / "data" / "satellite"
    folder.mkdir(parents=True)
    write_data("satellite", Images(pixels, torch.arange(12) % 2, ("meadow", "sea")), folder)
    return folder.parent
