"""Settings of a training."""

from typing import Any

import pytest

from ldpruner.errors import FinetuningError
from ldpruner.finetuning import Training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_steps": 0}, "training max_train_steps=0"),
        ({"learning_rate": -1.0}, r"training learning_rate=-1\.0"),
        ({"lr_scheduler": "staircase"}, "training lr_scheduler='staircase'"),
        ({"speed": 3}, "training has no 'speed'"),
        ({"task_loss_weight": 0, "output_kd_weight": 0, "feature_kd_weight": 0}, "leaves no loss"),
        ({"timesteps": "pipeline", "task_loss_weight": 1.0}, "has the original's own calls; set it to 0"),
        ({"rank": 4}, "training rank=4 needs adapter='lora'"),
        ({"merge_adapter": False}, "training merge_adapter=False needs adapter='lora'"),
        ({"teacher": "cached", "feature_kd_weight": 0.1}, "keeps only outputs; set it to 0"),
        ({"guidance_interval": (0.5, 0.6)}, "needs an autoguidance_scale above 0"),
        ({"guidance_interval": (0.5, 0.4), "autoguidance_scale": 1.0}, "give two noise levels"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuningError, match=message):
        Training(**settings)


def test_the_weight_of_the_task_depends_on_the_data_unless_it_is_set() -> None:
    assert Training().resolved(data=True, steps=25).task_loss_weight == 1
    assert Training().resolved(data=False, steps=25).task_loss_weight == 0
    assert Training(task_loss_weight=0.5).resolved(data=False, steps=25).task_loss_weight == 0.5


def test_a_few_step_model_never_learns_the_plain_denoising_loss_by_default() -> None:
    learning = {data: Training().resolved(data=data, steps=4) for data in (False, True)}
    assert {data: one.timesteps for data, one in learning.items()} == {False: "pipeline", True: None}
    assert [one.task_loss_weight for one in learning.values()] == [0, 0]
    assert Training(timesteps="all").resolved(data=True, steps=4).task_loss_weight == 1
    assert Training(task_loss_weight=1.0).resolved(data=False, steps=4).timesteps is None
