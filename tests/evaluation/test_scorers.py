"""Scorers of the user: what they receive, what they may return, and one line for what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldpruner.errors import EvaluationError
from ldpruner.evaluation.samples import SampleBatch, Sound
from ldpruner.evaluation.scorers import Scorer, find_scorers

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 12, 3), dtype=np.uint8)
BATCH = SampleBatch(pictures=PICTURES, prompts=("a", "bb", "ccc"))


def length(samples: list[Any], prompts: list[str] | None) -> list[int]:
    assert prompts is not None
    return list(map(len, prompts))


def received(batch: SampleBatch) -> tuple[list[Any], list[str] | None]:
    arguments: list[Any] = []

    def keep(samples: list[Any], prompts: list[str] | None) -> list[int]:
        arguments.extend((samples, prompts))
        return [0] * len(samples)

    Scorer("m:f", keep)(batch)
    return arguments[0], arguments[1]


def test_pictures_come_as_pictures_of_pil_with_their_prompts() -> None:
    samples, prompts = received(BATCH)
    assert all(isinstance(sample, Image.Image) for sample in samples)
    np.testing.assert_array_equal([np.asarray(sample) for sample in samples], PICTURES[:, 0])
    assert prompts == ["a", "bb", "ccc"]


def test_videos_come_as_frames_and_nothing_is_a_prompt_without_any() -> None:
    videos = PICTURES.reshape(1, 3, 8, 12, 3)
    samples, prompts = received(SampleBatch(pictures=videos))
    np.testing.assert_array_equal([np.asarray(frame) for frame in samples[0]], videos[0])
    assert prompts is None


def test_sounds_come_with_their_rate_and_may_be_changed() -> None:
    batch = SampleBatch(sounds=(np.ones((2, 40)), np.ones((2, 30))), sampling_rate=8000)

    def quieten(samples: list[Sound], prompts: list[str] | None) -> list[float]:
        for sample in samples:
            wave, rate = sample
            assert rate == 8000
            wave *= 0
        return [sample.wave.shape[1] for sample in samples]

    assert Scorer("m:f", quieten)(batch).tolist() == [40, 30]
    assert batch.sounds is not None
    assert batch.sounds[0].min() == 1


def returns(result: Any) -> Callable[..., Any]:
    return lambda samples, prompts: result


WEIGHT = torch.tensor([1.0, 2, 3], requires_grad=True)


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.0, True + 2],
        (1, 2, 3),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([[1], [2], [3]]),
        WEIGHT.bfloat16(),
        WEIGHT[:, None],
        [WEIGHT[0], WEIGHT[1], np.float32(3)],
        list(WEIGHT[:, None]),
    ],
    ids=lambda result: type(result).__name__,
)
def test_scores_may_be_a_list_an_array_or_a_tensor(result: Any) -> None:
    scores = Scorer("m:f", returns(result))(BATCH)
    assert scores.dtype == np.float64
    assert scores.tolist() == [1, 2, 3]


@pytest.mark.gpu
def test_scores_may_be_on_a_gpu() -> None:
    for result in (WEIGHT.cuda(), list(WEIGHT.cuda())):
        assert Scorer("m:f", returns(result))(BATCH).tolist() == [1, 2, 3]


def test_one_sample_may_have_a_bare_number() -> None:
    alone = SampleBatch(pictures=PICTURES[:1])
    for result in (0.5, torch.tensor(0.5), [0.5]):
        assert Scorer("m:f", returns(result))(alone).tolist() == [0.5]


def boom(samples: list[Any], prompts: list[str] | None) -> list[float]:
    raise KeyError("no\nsuch key")


def leave(samples: list[Any], prompts: list[str] | None) -> list[float]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (boom, "scorer m:f raises KeyError: 'no.*such key'; correct it: --verbose shows where"),
        (leave, "scorer m:f raises SystemExit: 3"),
        (returns([1, 2]), r"scorer m:f returns numbers of shape \[2\] for 3 samples; return one for each"),
        (returns([]), r"shape \[0\] for 3"),
        (returns(0.5), r"shape \[1\] for 3"),
        (returns([[1, 2, 3]]), r"shape \[1, 3\] for 3"),
        (returns(None), "returns None; return a number for each of the 3 samples"),
        (returns([1, None, 3]), r"returns \[1, None, 3\]; return a number"),
        (returns({"score": 3}), r"returns \{'score': 3\}; return a number for each of the 3 samples"),
        (returns("abc"), "returns 'abc'; return a number"),
        (returns([1, [2], 3]), "return a number for each"),
        (returns([1, float("nan"), 3]), r"returns nan for a sample \(number 1 of the batch\); return a finite number"),
        (returns(torch.tensor([1.0, 2.0, float("-inf")])), r"returns -inf for a sample \(number 2"),
    ],
)
def test_what_a_scorer_does_wrong_is_one_line(function: Any, words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        Scorer("m:f", function)(BATCH)
    assert "\n" not in str(caught.value)


def test_latents_that_are_not_decoded_cannot_be_scored() -> None:
    with pytest.raises(EvaluationError, match="neither pictures nor sounds"):
        Scorer("m:f", length)(SampleBatch(latents=np.zeros((3, 4))))


MODULE = """
class Reward:
    lower_is_better = True
    def __call__(self, samples, prompts):
        return [0] * len(samples)

def score(samples, prompts, scale=2):
    return [scale] * len(samples)

def pictures_only(pictures):
    return [1] * len(pictures)

reward = Reward()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_scorer_module.py").write_text(MODULE)
    (tmp_path / "broken_scorer.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "leaving_scorer.py").write_text("import sys; sys.exit(2)\n")
    (tmp_path / "wrong_scorer.py").write_text("def score(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_scorers_are_functions_objects_or_names(folder: Path) -> None:
    names = ("my_scorer_module:score", "my_scorer_module:reward", "my_scorer_module:reward.__call__")
    opened = find_scorers([*names, length])
    assert [scorer.name for scorer in opened] == [*names, "tests.evaluation.test_scorers:length"]
    assert [scorer.higher_is_better for scorer in opened] == [True, False, True, True]
    assert opened[0](BATCH).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("scorers", "words"),
    [
        (["score"], "scorer 'score': write it as module:function, such as my_metric:score"),
        (["my_scorer_module:"], "write it as module:function"),
        ("my_scorer_module:score", "give a list of them"),
        (length, "give a list of them"),
        (["nothing_here:score"], r"No module named 'nothing_here'; write nothing_here\.py in the current folder"),
        (["nothing.here:score"], r"write nothing/here\.py in the current folder"),
        (["my/metric.py:score"], "cannot be imported: ModuleNotFoundError"),
        (["broken_scorer:score"], "No module named 'nothing_of_this_name'; correct it: --verbose shows where"),
        (["leaving_scorer:score"], "cannot be imported: SystemExit: 2"),
        (["wrong_scorer:score"], "cannot be imported: SyntaxError"),
        (
            ["my_scorer_module:scores"],
            "my_scorer_module has no 'scores'; did you mean 'score'[?] accepted: score, pictures_only",
        ),
        (["my_scorer_module:number"], "scorer my_scorer_module:number is 3 and no function"),
        (["my_scorer_module:pictures_only"], r"takes \(pictures\); let it take \(samples, prompts\)"),
        (["my_scorer_module:Reward"], r"takes \(\); let it take"),
        (["my_scorer_module:score"] * 2, "scorer my_scorer_module:score is given twice"),
        ([length, length], "given twice"),
        ([3], "is 3 and no function"),
    ],
)
def test_what_is_no_scorer_is_one_line(folder: Path, scorers: Any, words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as caught:
        find_scorers(scorers)
    assert "\n" not in str(caught.value)
