"""The state of a run: moving average, learning rate, and checkpoints."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from ldpruner.errors import FinetuningError, StorageError
from ldpruner.finetuning import Training
from ldpruner.finetuning.settings import Quality
from ldpruner.finetuning.state import State, read_tensors, write_tensors
from tests.finetuning.conftest import short


def network() -> nn.Module:
    """Convolutions as the zoo trains them: channels last, with buffers, and a weight of no dimension."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3))
    module.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train_(state: State, module: nn.Module, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
        loss = (module(inputs) * module.scale).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.losses.append(loss.item())
        state.advance_(skipped=False)
        if state.step % 2 == 0:
            state.record_validation(1 / state.step, 0.0)


def test_a_restored_run_goes_on_bit_identically(tmp_path: Path) -> None:
    whole, part, resumed = (network() for _ in range(3))
    states = [State(module, short()) for module in (whole, part, resumed)]
    train_(states[0], whole, 6)
    train_(states[1], part, 3)
    states[1].write(tmp_path / "state.safetensors", {"seed": 0})
    states[2].restore_(tmp_path / "state.safetensors", {"seed": 0})
    assert states[2].learning_rate == states[1].learning_rate
    train_(states[2], resumed, 3)
    assert states[2].history == states[0].history
    for left, right in (
        (states[0].best, states[2].best),
        (whole.state_dict().values(), resumed.state_dict().values()),
    ):
        assert all(torch.equal(tensor, other) for tensor, other in zip(left, right, strict=True))


def test_the_average_follows_quickly_at_first_and_by_its_decay_later() -> None:
    module = nn.Linear(4, 4)
    state = State(module, Training(ema_decay=0.95, max_train_steps=300))
    average = None
    for step in range(300):
        with torch.no_grad():
            module.weight.normal_(generator=torch.Generator().manual_seed(step))
        decay = min(0.95, (1 + step) / (10 + step)) if step else 0.0
        average = module.weight.detach().clone() if average is None else average.lerp(module.weight, 1 - decay)
        state.optimizer.step()
        state.advance_(skipped=False)
    torch.testing.assert_close(state.ema.shadow_params[0], average)
    current = module.weight.detach().clone()
    with state.averaged():
        assert torch.equal(module.weight, state.ema.shadow_params[0])
    assert torch.equal(module.weight, current)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "cosine", "linear"])
def test_the_learning_rate_is_that_of_diffusers(name: str) -> None:
    module, reference = nn.Linear(2, 2), nn.Linear(2, 2)
    state = State(module, short(lr_scheduler=name, learning_rate=0.5))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=6)
    for _ in range(6):
        assert state.learning_rate == scheduler.get_last_lr()[0] == state.optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        state.optimizer.step()
        state.advance_(skipped=False)
    assert state.learning_rate == (0.5 if "constant" in name else 0)


def test_the_weights_with_the_lowest_validation_loss_are_kept() -> None:
    module = nn.Linear(2, 2)
    state = State(module, short(ema_decay=0.0, early_stopping_patience=2))
    averages = []
    for loss in (3.0, 1.0, 2.0, 4.0):
        averages.append(copy.deepcopy(state.ema.shadow_params[0]))
        assert not state.is_over
        state.record_validation(loss, 0.0)
        with torch.no_grad():
            module.weight += 1
        state.optimizer.step()
        state.advance_(skipped=False)
    assert state.is_over
    state.load_best_()
    assert (state.best_step, state.step) == (1, 4)
    assert torch.equal(module.weight, averages[1])


def test_a_checkpoint_of_another_run_or_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    State(nn.Linear(2, 2), short()).write(path, {"learning_rate": 1e-4})
    with pytest.raises(FinetuningError, match=r"rate was 0\.0001, is 0\.001; delete it"):
        State(nn.Linear(2, 2), short()).restore_(path, {"learning_rate": 1e-3})
    write_tensors(path, {"weight": torch.ones(2)})
    with pytest.raises(FinetuningError, match="is no checkpoint"):
        State(nn.Linear(2, 2), short()).restore_(path, {})
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(FinetuningError, match="is no checkpoint"):
        State(nn.Linear(2, 2), short()).restore_(path, {})


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"weight": torch.ones(2)}, {"step": 1})
    with pytest.raises(TypeError):
        write_tensors(path, {"weight": torch.zeros(2)}, {"step": object()})
    with pytest.raises(StorageError, match="cannot write"):
        write_tensors(path / "state.safetensors", {"weight": torch.zeros(2)})
    tensors, metadata = read_tensors(path)
    assert tensors["weight"].tolist() == [1, 1]
    assert metadata == {"step": 1}


@pytest.mark.case(number=44)
def test_frozen_weights_stay_as_they_are() -> None:
    module = network().requires_grad_(False)
    module.get_submodule("0").requires_grad_(True)
    before = copy.deepcopy(module.state_dict())
    state = State(module, short())
    train_(state, module, 3)
    state.load_best_()
    changed = [name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])]
    assert [name for name in changed if name.startswith(("0.", "2.", "scale"))] == ["0.weight", "0.bias"]


@pytest.mark.case(number=44)
def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(FinetuningError, match=r"all weights are frozen; call requires_grad_\(True\)"):
        State(network().requires_grad_(False), short())


def test_training_is_over_when_time_or_quality_says_so() -> None:
    state = State(nn.Linear(2, 2), short(max_hours=1.5))
    for step, (loss, hours, value) in enumerate([(1.0, 0.0, 5.0), (2.0, 1.0, 4.0), (0.5, 1.4, 4.5)]):
        state.step = step
        state.record_validation(loss, hours, Quality(value=value, reached=False))
    assert state.stopped is None
    assert state.best_step == 1  # by quality, not by loss
    state.record_validation(0.5, 1.6)
    assert state.stopped == "time"
    state.record_validation(0.5, 1.6, Quality(value=1.0, reached=True))
    assert state.history.stopped == "quality"
