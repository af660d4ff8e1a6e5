"""Settings of an evaluation are checked before anything runs."""

from typing import Any

import pytest

from ldpruner.errors import EvaluationError
from ldpruner.evaluation.settings import EvaluationSettings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"samples": 4}, "evaluation samples=4"),
        ({"data": "pictures"}, "evaluation data='pictures': files have no latents; choose features"),
        ({"lpips": "resnet"}, "evaluation lpips='resnet': Input should be 'alex', 'vgg' or 'squeeze'"),
        ({"scorers": "m:f"}, "evaluation scorers='m:f'"),
        ({"scorer": ["m:f"]}, r"has no 'scorer' .*did you mean 'scorers'"),
    ],
)
def test_a_wrong_field_is_one_line(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        EvaluationSettings(**fields)
    assert "\n" not in str(caught.value)
