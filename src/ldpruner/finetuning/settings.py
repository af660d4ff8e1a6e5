"""How a pruned denoiser is trained, as one value."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ldpruner.errors import FinetuningError
from ldpruner.values import MAX_COUNT, Settings, Value

FEATURE_KD_WEIGHT = 0.1
FEW_STEPS = 8  # or fewer are those of a model that was distilled to them
RANK = 16


def _as_written(precision: Any) -> Any:
    """YAML takes a plain `no` for False."""
    return "no" if precision is False else precision


class Training(Settings):
    """How long, how fast and by which losses a pruned denoiser is trained.

    The names are those of diffusers' training scripts.

    Attributes:
        max_train_steps: optimizer steps.
        train_batch_size: examples in each step, over all processes together.
        gradient_accumulation_steps: passes in which each process goes through its share of a batch.
        learning_rate: peak learning rate of AdamW.
        lr_scheduler: schedule of the learning rate, one of `diffusers.optimization.get_scheduler`.
        lr_warmup_steps: steps in which the learning rate rises from 0.
        adam_weight_decay: weight decay.
        use_8bit_adam: whether AdamW keeps its moments in 8 bits, through bitsandbytes.
        adapter: `lora` trains low-rank updates of the kept weights through PEFT (Hu et al. 2021, arXiv 2106.09685);
            None trains the weights themselves.
        rank: of the LoRA; None is 16.
        merge_adapter: whether the LoRA is merged into the weights at the end; otherwise it stays an adapter.
        teacher: where the teacher is while the student trains: `resident` on the device; `offloaded` to the CPU, its
            blocks on the device while they run; or `cached`: its outputs for all steps are computed first.
        max_grad_norm: the gradient is clipped to this norm.
        ema_decay: largest decay of the exponential moving average of the weights; the average is what is kept.
        task_loss_weight: weight of the denoising loss. None is 1 with data and 0 without: on its own samples the
            teacher's output is the better target, and guided samples would teach more guidance. It is also 0 where the
            probe has 8 steps or fewer: the denoising loss would undo what a few-step model was distilled to do.
        output_kd_weight: weight of the distillation loss on the teacher's output (BK-SDM, arXiv 2305.15798).
        feature_kd_weight: weight of the distillation loss on the teacher's features at each stage. None is 0.1, and 0
            where only the teacher's outputs are cached.
        timesteps: the noise levels to learn at: `all` of the schedule; or those of the `pipeline`, on the original's
            own calls, as few-step models need (Turbo, LCM, Lightning). None is `pipeline` without data where the probe
            has 8 steps or fewer, or where latents cannot be noised; else `all`.
        autoguidance_scale: strength of autoguidance (Karras et al. 2024, arXiv 2406.02507): the model as it is
            before this finetuning is the weak model, and training moves the target away from it.
        guidance_interval: lowest and highest noise level, in 0 to 1, at which autoguidance applies (Kynkäänniemi et
            al. 2024, arXiv 2404.07724).
        snr_weighting: whether the epsilon loss is weighted by 1/alpha, which raises high noise levels; these decide
            the colours.
        normalize_features: whether each stage counts alike, whatever the size of its features.
        mixed_precision: `no`, `fp16` or `bf16`.
        gradient_checkpointing: less memory, more time.
        seed: seed of the training; each step derives its own.
        validation_fraction: share of the examples that is not trained on; its loss chooses the weights.
        validation_steps: steps between two validations.
        early_stopping_patience: validations without a better loss, or a better quality where that is measured, before
            training stops; None never stops early.
        max_hours: training stops at the first validation after this time; None sets no limit.
        checkpointing_steps: steps between two checkpoints, which is what a kill can cost.
    """

    noun = "training"
    error = FinetuningError

    max_train_steps: int = Field(default=1000, ge=1, le=MAX_COUNT)
    train_batch_size: int = Field(default=16, ge=1, le=MAX_COUNT)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=MAX_COUNT)
    learning_rate: float = Field(default=3e-4, gt=0)
    lr_warmup_steps: int = Field(default=50, ge=0, le=MAX_COUNT)
    lr_scheduler: Literal["constant", "constant_with_warmup", "cosine", "linear"] = "cosine"
    adam_weight_decay: float = Field(default=0.01, ge=0)
    use_8bit_adam: bool = False
    adapter: Literal["lora"] | None = None
    rank: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    merge_adapter: bool = True
    teacher: Literal["resident", "offloaded", "cached"] = "resident"
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    task_loss_weight: float | None = Field(default=None, ge=0)
    output_kd_weight: float = Field(default=1.0, ge=0)
    feature_kd_weight: float | None = Field(default=None, ge=0)
    timesteps: Literal["all", "pipeline"] | None = None
    autoguidance_scale: float = Field(default=0.0, ge=0)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    snr_weighting: bool = True
    normalize_features: bool = True
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_as_written)] = "no"
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    validation_steps: int = Field(default=100, ge=1, le=MAX_COUNT)
    early_stopping_patience: int | None = Field(default=5, ge=1)
    max_hours: float | None = Field(default=None, gt=0)
    checkpointing_steps: int = Field(default=100, ge=1, le=MAX_COUNT)

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.task_loss_weight == self.output_kd_weight == self.feature_kd_weight == 0:
            raise FinetuningError(
                "training task_loss_weight=0, output_kd_weight=0, feature_kd_weight=0 leaves no loss; set one above 0"
            )
        low, high = self.guidance_interval
        if (low, high) != (0, 1) and not self.autoguidance_scale:
            raise FinetuningError(
                f"training guidance_interval=({low:g}, {high:g}) needs an autoguidance_scale above 0"
            )
        if not 0 <= low < high <= 1:
            raise FinetuningError(
                f"training guidance_interval=({low:g}, {high:g}): give two noise levels with 0 <= low < high <= 1"
            )
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> "Training":
        if self.adapter is None and (self.rank is not None or not self.merge_adapter):
            name = f"rank={self.rank}" if self.rank is not None else "merge_adapter=False"
            raise FinetuningError(f"training {name} needs adapter='lora'")
        if self.timesteps == "pipeline" and self.task_loss_weight:
            raise FinetuningError(
                f"training task_loss_weight={self.task_loss_weight:g} needs noised data, and timesteps='pipeline' "
                "has the original's own calls; set it to 0"
            )
        if self.teacher == "cached" and self.feature_kd_weight:
            raise FinetuningError(
                f"training feature_kd_weight={self.feature_kd_weight:g} compares features, and teacher='cached' keeps "
                "only outputs; set it to 0, or use teacher='offloaded'"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether a step runs the teacher."""
        return bool(self.output_kd_weight or self.feature_kd_weight or self.autoguidance_scale)

    def resolved(self, *, data: bool, steps: int) -> "Training":
        """The same with values in the place of None: for data or none, and for a pipeline of that many steps."""
        is_few_step = self.timesteps is None and steps <= FEW_STEPS
        defaults = {
            "timesteps": "pipeline" if is_few_step and not data and not self.task_loss_weight else None,
            "task_loss_weight": 1.0 if data and self.timesteps != "pipeline" and not is_few_step else 0.0,
            "feature_kd_weight": 0.0 if self.teacher == "cached" else FEATURE_KD_WEIGHT,
            "rank": RANK if self.adapter else None,
        }
        return self.replace(**{name: value for name, value in defaults.items() if getattr(self, name) is None})


class Quality(Value):
    """How good the samples of a network are while it is trained.

    Attributes:
        value: of the metric.
        reached: whether it is good enough to stop.
        higher_is_better: whether more of it is better.
    """

    value: float
    reached: bool
    higher_is_better: bool = False


class History(Value):
    """What training went through.

    Attributes:
        losses: of each step.
        validation_losses: loss on the validation examples, by step; step 0 is before the first update.
        qualities: value of the user's metric, by step; empty if none was asked for.
        hours: training time up to each validation, by step.
        best_step: the step whose EMA weights were kept: those of the best quality, or else of the lowest loss.
        steps: optimizer steps taken; fewer than `max_train_steps` if training stopped before.
        stopped: why it stopped before: `early`, `time` or `quality`; None if it did not.
    """

    losses: tuple[float, ...]
    validation_losses: dict[int, float]
    qualities: dict[int, float] = Field(default_factory=dict)
    hours: dict[int, float] = Field(default_factory=dict)
    best_step: int
    steps: int
    stopped: Literal["early", "time", "quality"] | None = None
