"""How a pruned denoiser is trained, as one value."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from torch import Tensor

from ldpruner.errors import FinetuningError
from ldpruner.values import Value, first_fault


def _as_written(precision: Any) -> Any:
    """YAML takes a plain `no` for False."""
    return "no" if precision is False else precision


class Training(Value):
    """How long, how fast and by which losses a pruned denoiser is trained.

    Attributes:
        steps, batch: optimizer steps, and examples in each, over all processes together.
        accumulate: passes in which each process goes through its share of a batch, where memory is short.
        rate: of AdamW, at its peak; it rises for `warmup` steps, then stays (`constant`) or falls to zero (`cosine`).
        weight_decay, clip: of the weights; of the gradient's norm.
        average: decay of the moving average of the weights, which is what is kept.
        task, output, features: weights of the losses: the noise in the latents, the teacher's output, the teacher's
            features at each stage. The first is 1 with data and 0 without if it is None: on samples of its own the
            teacher knows better what is to be found, and guided ones would teach more guidance.
        autoguidance: how far what is learnt lies beyond the teacher, away from what the pruned network found before it
            was trained. As a weaker version of the teacher it shows where that errs (Karras et al. 2024, arXiv
            2406.02507).
        led_above, led_below: noise levels, of 0 to 1, between which it does. Left alone at high noise it keeps more of
            what the teacher varies (Kynkäänniemi et al. 2024, arXiv 2404.07724).
        balanced: whether errors in noise that is to be found count the more, the less signal is beside it (1/alpha): a
            plain loss (Ho et al. 2020) hardly sees those at high noise, which decide the colours.
        normalised: whether each stage counts alike, whatever the size of its features.
        precision: of the products: `no` for full, `fp16` or `bf16`.
        gradient_checkpointing: less memory, more time.
        seed: from which each step's own seed is made.
        held_out: the share of the examples that is not trained on, and the loss of which chooses the weights.
        check_every, patience: steps between two looks at it; looks without a better one before training stops, None
            to go on.
        checkpoint_every: steps that a kill can cost.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=50, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    average: float = Field(default=0.999, ge=0, lt=1)
    task: float | None = Field(default=None, ge=0)
    output: float = Field(default=1.0, ge=0)
    features: float = Field(default=0.1, ge=0)
    autoguidance: float = Field(default=0.0, ge=0)
    led_above: float = Field(default=0.0, ge=0, lt=1)
    led_below: float = Field(default=1.0, gt=0, le=1)
    balanced: bool = True
    normalised: bool = True
    precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_as_written)] = "no"
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    held_out: float = Field(default=0.05, gt=0, lt=1)
    check_every: int = Field(default=100, ge=1)
    patience: int | None = Field(default=5, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise FinetuningError(f"training {first_fault(error)}") from error
        if self.task == self.output == self.features == 0:
            raise FinetuningError(
                "training task=0, output=0, features=0: nothing is learnt; weigh one of them above 0"
            )
        if self.led_above >= self.led_below:
            raise FinetuningError(
                f"training led_above={self.led_above:g}, led_below={self.led_below:g}: no noise level lies between; "
                "lower the first"
            )

    @property
    def is_taught(self) -> bool:
        """Whether the teacher is asked at each step."""
        return bool(self.output or self.features or self.autoguidance)

    def resolved(self, *, data: bool) -> "Training":
        """The same with the weight of the task that fits learning from data, or from the teacher alone."""
        return self if self.task is not None else self.model_copy(update={"task": 1.0 if data else 0.0})

    def strengths(self, levels: Tensor) -> Tensor:
        """How strong autoguidance is at noise levels, [batch]."""
        return self.autoguidance * ((levels >= self.led_above) & (levels <= self.led_below))

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * done))


class History(Value):
    """What training went through.

    Attributes:
        losses: of each step.
        held_out: the loss on examples that are not trained on, by step; step 0 is before the first.
        best: the step whose averaged weights were kept.
        steps: how many were made: fewer than asked if it stopped early.
    """

    losses: tuple[float, ...]
    held_out: dict[int, float]
    best: int
    steps: int
