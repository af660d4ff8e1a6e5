"""Opening a pipeline where it shall run."""

from pathlib import Path

import diffusers.utils.logging
import pytest
import torch

from ldpruner.errors import DeviceError
from ldpruner.pruning.opening import open_pipeline


def test_a_pipeline_opens_in_a_precision_without_bars(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = open_pipeline(folder, "cpu", "bfloat16")
    assert pipeline.unet.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("device", "dtype"), [("abacus", None), ("meta", None), ("cpu", "int99"), ("cpu", "nn"), ("cuda:99", None)]
)
def test_a_missing_device_is_an_error_before_weights_are_read(device: str, dtype: str | None) -> None:
    with pytest.raises(DeviceError, match=dtype or device):
        open_pipeline("nowhere", device, dtype)
