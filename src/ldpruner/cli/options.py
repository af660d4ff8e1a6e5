"""The options that several commands have, each defined once."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

BATCH_SIZE = 16  # as in pipelines.sampling, which takes seconds to import; a test compares both


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


SCORING, TRAINING, RUNNING, OUTPUT = "Scoring", "Training", "Where it runs", "Output"

MODEL = Annotated[str, typer.Argument(help="A folder, a Hub id, or zoo:NAME.")]
RUN = Annotated[Path, typer.Option("--run", help="The run folder; the same command again resumes.")]
COMPONENT = Annotated[str | None, typer.Option(help="Which network, where there are several denoisers.")]
IGNORE = Annotated[
    list[str] | None, typer.Option(help="Leave out operators by a pattern, such as 'mid_block*'; repeatable.")
]
TARGETS = Annotated[
    list[str] | None, typer.Option(help="Only operators of a pattern, such as 'up_blocks.*'; repeatable.")
]
GRANULARITY = Annotated[
    Literal["block", "branch", "leaf"] | None,
    typer.Option(
        help="What may be removed: whole blocks; residual branches too; everything. Default: leaf, but branch for "
        "networks of two billion parameters or more."
    ),
]
SELECTED = Annotated[
    Literal["block", "branch", "leaf"] | None,
    typer.Option(
        "--granularity", help="Whole blocks; residual branches too; everything. Default: whatever was scored."
    ),
]
BUDGET = Annotated[
    list[str],
    typer.Option(
        help="What may be left: latency=0.65, parameters, macs or memory; or operators=20 to remove; repeatable."
    ),
]
RULE = Annotated[
    Literal["knapsack", "greedy", "random"], typer.Option(help="How to select: knapsack, or greedy as in the paper.")
]
NATIVE = Annotated[
    bool,
    typer.Option("--native", help="Remove whole blocks only, so that plain diffusers opens the result without code."),
]
SAMPLES = Annotated[int, typer.Option(help="Samples for each modification.", rich_help_panel=SCORING)]
STEPS = Annotated[int, typer.Option(help="Denoising steps of each sample.", rich_help_panel=SCORING)]
SEED = Annotated[int, typer.Option(help="From which each sample's own seed is made.", rich_help_panel=SCORING)]
HEIGHT = Annotated[
    int | None,
    typer.Option(help="Pixels of a sample. Default: the pipeline's.", min=1, rich_help_panel=SCORING),
]
WIDTH = Annotated[
    int | None,
    typer.Option(help="Pixels of a sample. Default: the pipeline's.", min=1, rich_help_panel=SCORING),
]
METRIC = Annotated[
    Literal["mean_std", "mean_variance", "mse"],
    typer.Option(help="The score: mean_std as in the paper, mean_variance or mse.", rich_help_panel=SCORING),
]
SCORED_BUDGETS = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="For what the scores must be certain. Default: latency=0.65, 0.5 and 0.35.",
        rich_help_panel=SCORING,
    ),
]
EXHAUSTIVE = Annotated[
    bool,
    typer.Option("--exhaustive", help="Score everything on all samples, as in the paper.", rich_help_panel=SCORING),
]
TFLOPS = Annotated[
    float | None,
    typer.Option(help="For a dry run: what the GPU sustains, in TFLOP/s. Default: 100.", min=0.001, callback=_finite),
]
GPU = Annotated[
    Literal["A10", "A100", "H100", "H200", "L4", "L40S", "RTX 3090", "RTX 4090"] | None,
    typer.Option(help="For a dry run: a GPU, at 40 % of its dense peak.", case_sensitive=False),
]
PROMPTS = Annotated[
    Path | None,
    typer.Option(help="A text file with a prompt on each line; or .csv, .tsv, .jsonl with prompt and category."),
]
GUIDANCE = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")]
PIPELINE_ARG = Annotated[
    list[str] | None,
    typer.Option(help="Another argument of the pipeline's call, such as eta=0.5; an image is a path; repeatable."),
]
DATA = Annotated[Path | None, typer.Option(help="A folder of pictures or sounds. Default: samples of the original.")]
FINETUNE = Annotated[
    bool, typer.Option("--finetune", help="Also recover the quality, with default settings, and evaluate it.")
]
UNTIL = Annotated[
    str | None,
    typer.Option(help="Stop when good enough, such as frechet_distance<=original; the best weights by it are kept."),
]
EXECUTOR = Annotated[
    Literal["local", "ray"],
    typer.Option(help="What samples: local, this process; ray, several.", rich_help_panel=RUNNING),
]
RAY_ADDRESS = Annotated[
    str | None, typer.Option(help="A Ray cluster. Default: workers on this machine.", rich_help_panel=RUNNING)
]
BATCH = Annotated[int, typer.Option("--batch-size", help="Samples at once.", min=1, rich_help_panel=RUNNING)]
DEVICE = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps. Default: cuda if there is one.", rich_help_panel=RUNNING),
]
DTYPE = Annotated[
    str | None,
    typer.Option(
        help="Precision of the weights: float32, float16, bfloat16. Default: float32.", rich_help_panel=RUNNING
    ),
]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and stop.", rich_help_panel=OUTPUT)
]
JSON = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object; all else goes to standard error.", rich_help_panel=OUTPUT),
]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="One line: the result.", rich_help_panel=OUTPUT)]
VERBOSE = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also what the libraries say, and where an error is.", rich_help_panel=OUTPUT
    ),
]
