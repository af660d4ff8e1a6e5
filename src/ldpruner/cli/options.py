"""The options that several commands have, each defined once."""

from pathlib import Path
from typing import Annotated

import typer

EXECUTORS = ("local", "ray")
BATCH_SIZE = 16  # as in pipelines.sampling, which takes seconds to import; a test compares both

SCORING, TRAINING, RUNNING = "Scoring", "Training", "Where it runs"

MODEL = Annotated[str, typer.Argument(help="A folder, a Hub id, or zoo:NAME.", show_default=False)]
RUN = Annotated[
    Path, typer.Option("--run", help="The run folder; the same command again resumes.", show_default=False)
]
COMPONENT = Annotated[
    str | None, typer.Option(help="Which network, where there are several denoisers.", show_default=False)
]
IGNORE = Annotated[
    list[str] | None,
    typer.Option(help="Leave out operators by a pattern, such as 'mid_block*'; repeatable.", show_default=False),
]
TARGETS = Annotated[
    list[str] | None,
    typer.Option(help="Only operators of a pattern, such as 'up_blocks.*'; repeatable.", show_default=False),
]
BUDGET = Annotated[
    list[str],
    typer.Option(
        help="What may be left: latency=0.65, parameters, macs or memory; or operators=20 to remove; repeatable.",
        show_default=False,
    ),
]
RULE = Annotated[str, typer.Option(help="How to select: knapsack, or greedy as in the paper.")]
SAMPLES = Annotated[int, typer.Option(help="Samples for each modification.", rich_help_panel=SCORING)]
STEPS = Annotated[int, typer.Option(help="Denoising steps of each sample.", rich_help_panel=SCORING)]
SEED = Annotated[int, typer.Option(help="From which each sample's own seed is made.", rich_help_panel=SCORING)]
METRIC = Annotated[
    str, typer.Option(help="The score: mean_std as in the paper, mean_variance or mse.", rich_help_panel=SCORING)
]
SCORED_BUDGETS = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="For what the scores must be certain. Default: latency=0.65, 0.5 and 0.35.",
        show_default=False,
        rich_help_panel=SCORING,
    ),
]
EXHAUSTIVE = Annotated[
    bool,
    typer.Option("--exhaustive", help="Score everything on all samples, as in the paper.", rich_help_panel=SCORING),
]
PROMPTS = Annotated[Path | None, typer.Option(help="A text file with a prompt on each line.", show_default=False)]
GUIDANCE = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.", show_default=False)]
PIPELINE_ARG = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline-arg",
        help="Another argument of the pipeline's call, such as height=256; an image is a path; repeatable.",
        show_default=False,
    ),
]
DATA = Annotated[
    Path | None,
    typer.Option(help="A folder of pictures or sounds. Default: samples of the original.", show_default=False),
]
EXECUTOR = Annotated[
    str, typer.Option(help="What samples: local, this process; ray, several.", rich_help_panel=RUNNING)
]
RAY_ADDRESS = Annotated[
    str | None,
    typer.Option(help="A Ray cluster. Default: workers on this machine.", show_default=False, rich_help_panel=RUNNING),
]
BATCH = Annotated[int, typer.Option("--batch-size", help="Samples at once.", min=1, rich_help_panel=RUNNING)]
DEVICE = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, mps. Default: cuda if there is one.", show_default=False, rich_help_panel=RUNNING
    ),
]
DTYPE = Annotated[
    str | None,
    typer.Option(
        help="Precision of the weights: float32, float16, bfloat16. Default: float32.",
        show_default=False,
        rich_help_panel=RUNNING,
    ),
]
