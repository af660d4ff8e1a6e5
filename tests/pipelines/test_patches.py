"""A temporary change is undone exactly, also after an error."""

import copy
import inspect
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from ldpruner.pipelines.patches import patched_class, patched_method, patched_step, preserved_dtype


def test_a_patched_class_keeps_its_name_and_is_restored_after_an_error() -> None:
    module = nn.Linear(1, 1)
    with patched_class(module, extra_repr=lambda _: "patched"):
        assert (type(module).__name__, type(module).__module__) == ("Linear", nn.Linear.__module__)
        assert isinstance(module, nn.Linear)
        assert repr(module) == "Linear(patched)"
    with pytest.raises(ZeroDivisionError), patched_class(module):
        raise ZeroDivisionError
    assert type(module) is nn.Linear


def test_a_copy_of_a_scheduler_is_patched_too_and_the_signature_stays() -> None:
    def step(*_: Any, **__: Any) -> str:
        return "patched"

    scheduler, signature = DDIMScheduler(), inspect.signature(DDIMScheduler.step)
    with patched_step(scheduler, step):
        assert copy.deepcopy(scheduler).step() == scheduler.step() == "patched"
        assert inspect.signature(type(scheduler).step) == signature
    assert type(scheduler) is DDIMScheduler


def test_a_step_of_the_users_own_stays() -> None:
    scheduler = DDIMScheduler()
    own = scheduler.step
    scheduler.step = own
    with patched_step(scheduler, lambda *_: None):
        pass
    assert vars(scheduler).get("step") is own


@pytest.mark.parametrize("is_own", [False, True])
def test_a_patched_method_is_restored_where_it_was(is_own: bool) -> None:
    module = nn.Linear(1, 1)
    original = module.forward
    if is_own:
        module.forward = original  # type: ignore[method-assign]
    with patched_method(module, "forward", lambda values: values + 1):
        assert module(torch.ones(1)) == 2
        assert inspect.signature(module.forward) == inspect.signature(original)
    assert ("forward" in vars(module)) is is_own
    assert module.forward == original


def test_weights_that_were_upcast_are_cast_back() -> None:
    module = nn.Linear(1, 1).half()
    with preserved_dtype(module):
        module.float()
    assert module.weight.dtype == module.bias.dtype == torch.float16
