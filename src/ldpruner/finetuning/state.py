"""The state of a training run: weights, their moving average, optimizer, learning rate and losses.

A checkpoint is one safetensors file with the rest as JSON in its header. It is written under a temporary name and
then renamed, and nothing in it is unpickled.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn

from ldpruner.errors import FinetuningError, StorageError, one_line
from ldpruner.files import replacing
from ldpruner.finetuning.settings import History, Quality, Training
from ldpruner.finetuning.sharding import is_sharded, like, whole
from ldpruner.pipelines.offload import module_device

FUSED_DEVICES = ("cpu", "cuda")  # on which torch has a fused AdamW


class State:
    """Everything that a checkpoint holds. What is trained is in full precision, whatever the network ships in.

    Only weights that require gradients are trained: all of a network as it is loaded, a LoRA where the rest is frozen.
    Under an adapter, the frozen weights keep their precision.

    Raises:
        FinetuningError: no weight requires gradients, or bitsandbytes is missing.
    """

    def __init__(self, module: nn.Module, training: Training, scaler: torch.amp.GradScaler | None = None) -> None:
        self.training, self.scaler = training, scaler
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        if not self.weights:
            raise FinetuningError("all weights are frozen; call requires_grad_(True) on the network, or add a LoRA")
        if not is_sharded(module):
            full_precision_(module)
        self.buffers = list(module.buffers())
        self.optimizer = _optimizer(self.weights, training, module_device(module))
        self.lr_scheduler = get_scheduler(
            training.lr_scheduler,
            self.optimizer,
            num_warmup_steps=training.lr_warmup_steps,
            num_training_steps=training.max_train_steps,
        )
        self.ema = EMAModel(self.weights, decay=training.ema_decay, foreach=True)
        self.best: list[Tensor] = []
        self.step, self.best_step, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.validation_losses: dict[int, float] = {}
        self.qualities: dict[int, float] = {}
        self.hours: dict[int, float] = {}
        self.reached = False

    @property
    def history(self) -> History:
        return History(
            losses=tuple(self.losses),
            validation_losses=self.validation_losses,
            qualities=self.qualities,
            hours=self.hours,
            best_step=self.best_step if self.validation_losses else self.step,
            steps=self.step,
            stopped=self.stopped,
        )

    @property
    def stopped(self) -> Literal["early", "time", "quality"] | None:
        """Why training is over before its last step."""
        patience, limit = self.training.early_stopping_patience, self.training.max_hours
        if self.reached:
            return "quality"
        if limit is not None and max(self.hours.values(), default=0.0) >= limit:
            return "time"
        without_improvement = sum(step > self.best_step for step in self.validation_losses)
        return "early" if patience is not None and without_improvement >= patience else None

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or training has stopped before."""
        return self.step >= self.training.max_train_steps or self.stopped is not None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.lr_scheduler.get_last_lr()[0])

    def advance_(self, *, skipped: bool) -> None:
        """Updates the learning rate and the moving average after an optimizer step; fp16 skips some."""
        if not skipped:
            self.lr_scheduler.step()
        self.ema.step(self.weights)
        self.step += 1

    def record_validation(self, loss: float, hours: float, quality: Quality | None = None) -> None:
        """Keeps a validation loss, and the averaged weights if it, or the quality where there is one, is the best."""
        sign = -1.0 if quality is not None and quality.higher_is_better else 1.0
        earlier, value = self.validation_losses, loss
        if quality is not None:
            earlier, value = self.qualities, quality.value
        if not earlier or sign * value < min(sign * other for other in earlier.values()):
            self.best_step = self.step
            self.best = [weight.clone() for weight in self.ema.shadow_params]
        self.validation_losses[self.step], self.hours[self.step] = loss, hours
        if quality is not None:
            self.qualities[self.step], self.reached = quality.value, quality.reached

    @torch.no_grad()
    def load_best_(self) -> None:
        """Loads the averaged weights with the lowest validation loss; the last ones if there was no validation."""
        _copy_(self.weights, self.best or self.ema.shadow_params)

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """The network has its averaged weights inside the context."""
        trained = [weight.detach().cpu().clone() for weight in self.weights]
        _copy_(self.weights, self.ema.shadow_params)
        try:
            yield
        finally:
            _copy_(self.weights, trained)

    def write(self, path: Path, identity: Mapping[str, Any], *, is_first: bool = True) -> None:
        """Writes a checkpoint of the run that `identity` describes. All processes gather it, and the first one writes.

        Raises:
            StorageError: the file cannot be written; the previous checkpoint is still there.
        """
        groups = {"weight": self.weights, "buffer": self.buffers, "ema": self.ema.shadow_params, "best": self.best}
        tensors = {f"{name}/{index}": tensor for name, group in groups.items() for index, tensor in enumerate(group)}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        metadata = {
            "identity": dict(identity),
            "losses": self.losses,
            "validation_losses": self.validation_losses,
            "qualities": self.qualities,
            "hours": self.hours,
            "reached": self.reached,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "ema_step": self.ema.optimization_step,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
        }
        gathered = {}
        for name, tensor in tensors.items():  # one at a time: a device may not hold them all
            content = whole(tensor.detach())
            if is_first:
                gathered[name] = content
        if is_first:
            write_tensors(path, gathered, metadata)

    @torch.no_grad()
    def restore_(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Restores what `write` wrote.

        Raises:
            FinetuningError: the file is no checkpoint, or of another run.
        """
        tensors, metadata = _read_checkpoint(path, self.weights[0].device, identity)
        for name, targets in {"weight": self.weights, "buffer": self.buffers, "ema": self.ema.shadow_params}.items():
            _copy_(targets, _group(tensors, name))
        self.best = [like(best, weight) for best, weight in zip(_group(tensors, "best"), self.weights, strict=False)]
        self._restore_optimizer_(tensors)
        self.lr_scheduler.load_state_dict(metadata["lr_scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.ema.optimization_step = metadata["ema_step"]
        self.losses, self.step = metadata["losses"], len(metadata["losses"])
        self.validation_losses, self.qualities, self.hours = (
            {int(step): value for step, value in metadata.get(name, {}).items()}
            for name in ("validation_losses", "qualities", "hours")
        )
        self.reached = metadata.get("reached", False)
        self.best_step, self.seconds = metadata["best_step"], metadata["seconds"]
        if self.scaler is not None:
            self.scaler.load_state_dict(metadata["scaler"])

    def _restore_optimizer_(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, index, *name = key.split("/")
            if group == "optimizer":
                # fused AdamW walks moments in the memory order of their weight, which the file does not keep
                weight = self.weights[int(index)].detach()
                if tensor.shape == weight.shape:
                    moment = torch.empty_like(weight, dtype=tensor.dtype)
                    tensor = moment.copy_(like(tensor, moment))
                state.setdefault(int(index), {})[name[0]] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def full_precision_(module: nn.Module) -> None:
    """Casts what is trained to float32, and beside an adapter nothing else."""
    if not getattr(module, "peft_config", None):
        module.float()
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def _optimizer(weights: Sequence[nn.Parameter], training: Training, device: torch.device) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.adam_weight_decay
    if not training.use_8bit_adam:
        return torch.optim.AdamW(weights, rate, weight_decay=decay, fused=device.type in FUSED_DEVICES)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise FinetuningError(
            "use_8bit_adam=True needs bitsandbytes; install it with: pip install bitsandbytes"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(weights, rate, weight_decay=decay)
    return optimizer


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes tensors, and metadata as JSON, to a safetensors file: whole or not at all.

    Raises:
        StorageError: the file cannot be written; the previous one is still there.
    """
    contents = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": json.dumps(dict(metadata or {}))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            safetensors.torch.save_file(contents, partial, metadata=header)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {one_line(error)}") from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote: tensors and metadata."""
    with safetensors.safe_open(path, framework="pt", device=str(device)) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
        return tensors, json.loads(opened.metadata()["metadata"])


def _read_checkpoint(
    path: Path, device: torch.device, identity: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = read_tensors(path, device)
        written, current = metadata["identity"], json.loads(json.dumps(dict(identity)))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FinetuningError(f"{path} is no checkpoint: {one_line(error)}; delete it to start again") from error
    names = sorted(name for name in {*written, *current} if written.get(name) != current.get(name))
    if names:
        changes = "; ".join(f"{name} was {written.get(name)!r}, is {current.get(name)!r}" for name in names)
        raise FinetuningError(f"{path} is of another training: {changes}; delete it or choose another run folder")
    return tensors, metadata


def _group(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    count = sum(key.startswith(f"{name}/") for key in tensors)
    return [tensors[f"{name}/{index}"] for index in range(count)]


def _copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(like(source, target))
