"""A part of a pipeline is watched: its type and its copies stay as they are, and everything is undone exactly."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from ldpruner.pipelines.patches import patched


def always(value: Any) -> Any:
    return lambda *_, **__: value


def test_the_type_and_the_signature_stay() -> None:
    scheduler, signature = DDIMScheduler(), inspect.signature(DDIMScheduler().step)
    with patched(scheduler, step=always("patched")):
        assert scheduler.step() == "patched"
        assert type(scheduler) is DDIMScheduler
        assert inspect.signature(scheduler.step) == signature
        assert inspect.signature(DDIMScheduler.step).parameters.keys() - {"self"} == signature.parameters.keys()


def test_a_copy_and_another_instance_keep_their_own() -> None:
    scheduler, other = DDIMScheduler(), DDIMScheduler()
    with patched(scheduler, step=always("patched")):
        for unpatched in (other, copy.deepcopy(scheduler)):
            unpatched.set_timesteps(1)
            assert unpatched.step(torch.ones(1), 0, torch.ones(1)).prev_sample.shape == (1,)


def test_an_error_restores_the_class() -> None:
    before = dict(vars(DDIMScheduler))
    with pytest.raises(ZeroDivisionError), patched(DDIMScheduler(), step=always(None)):
        raise ZeroDivisionError
    assert dict(vars(DDIMScheduler)) == before


def test_what_a_class_inherits_is_patched_and_inherited_again() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    with patched(first, __call__=always("first")), patched(second, __call__=always("second")):
        assert (first(), second()) == ("first", "second")
        assert nn.Linear(1, 1)(torch.ones(1)).shape == (1,)
    assert "__call__" not in vars(nn.Linear)


def test_patches_of_two_threads_may_end_in_any_order() -> None:
    first, second = DDIMScheduler(), DDIMScheduler()
    with patched(first, step=always("first")):
        inner = patched(second, step=always("second"))
        inner.__enter__()
    assert second.step() == "second"
    inner.__exit__(None, None, None)
    assert inspect.isfunction(inspect.getattr_static(DDIMScheduler, "step"))


def test_a_property_of_one_object_is_patched() -> None:
    class Part:
        device = property(lambda _: "meta")

    part = Part()
    with patched(part, device="cpu"):
        assert (part.device, Part().device) == ("cpu", "meta")
    assert part.device == "meta"


@pytest.mark.parametrize("is_own", [False, True])
def test_a_method_is_restored_where_it_was(is_own: bool) -> None:
    module = nn.Linear(1, 1)
    original = module.forward
    if is_own:
        module.forward = functools.partial(original)  # type: ignore[method-assign]
        original = module.forward
    with patched(module, forward=lambda values: values + 1):
        assert module(torch.ones(1)) == 2
        assert inspect.signature(module.forward) == inspect.signature(original)
    assert ("forward" in vars(module)) is is_own
    assert module.forward == original
