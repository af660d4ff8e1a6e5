"""How a pruned pipeline is compared with its original, as a value that a recipe holds."""

from pathlib import Path

from pydantic import Field, model_validator

from ldpruner.errors import EvaluationError
from ldpruner.evaluation.features import LpipsNetwork
from ldpruner.evaluation.measures import MIN_SAMPLES
from ldpruner.values import MAX_COUNT, Settings

EVALUATED_SAMPLES = 64  # of each pipeline


class EvaluationSettings(Settings):
    """How the recovered pipeline is compared with the original (see `evaluate`).

    Attributes:
        samples: of each pipeline.
        batch_size: samples at once; None is 16, or 8 where they are decoded.
        features, clip, dino, lpips: the feature network, the CLIP model, and the networks of distances.
        scorers: functions of the user, as `module:function`.
        data: a folder that samples are compared with; None compares them with the original's.
        prompts: a file of prompts; None takes those of the recipe.
    """

    noun = "evaluation"
    error = EvaluationError

    samples: int = Field(default=EVALUATED_SAMPLES, ge=MIN_SAMPLES, le=MAX_COUNT)
    batch_size: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    features: str = "latents"
    clip: str | None = None
    dino: str | None = None
    lpips: LpipsNetwork | None = None
    scorers: tuple[str, ...] = ()
    data: Path | None = None
    prompts: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "EvaluationSettings":
        if self.data is not None and self.features == "latents":
            raise EvaluationError(
                f"evaluation data={str(self.data)!r}: files have no latents; "
                "choose features: inception, a folder or a Hub id"
            )
        return self
