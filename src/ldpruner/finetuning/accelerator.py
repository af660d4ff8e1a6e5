"""The devices and the precision of a training run, of one process or several."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from ldpruner.errors import FinetuningError, one_line
from ldpruner.finetuning.settings import Training
from ldpruner.finetuning.sharding import without_accelerates_own

ENCODING_TIMEOUT = timedelta(days=7)  # other processes wait while the first one encodes


def prepare_accelerator(
    training: Training, device: torch.device, folder: Path | None = None, report_to: Sequence[Any] = ()
) -> Accelerator:
    """The devices, the precision and the trackers of a training run.

    Raises:
        FinetuningError: a tracker is not installed, or a batch cannot be shared among the processes.
    """
    # Otherwise Accelerate keeps the precision and the device of the first accelerator of the process.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # a pruned network may have a weight that nothing reads, and gradient checkpointing needs a static graph
    handlers = [DistributedDataParallelKwargs(static_graph=True), InitProcessGroupKwargs(timeout=ENCODING_TIMEOUT)]
    try:
        with without_accelerates_own():
            accelerator = Accelerator(
                mixed_precision=training.mixed_precision,
                cpu=device.type == "cpu",
                log_with=list(report_to) or None,
                project_dir=str(folder or "."),
                kwargs_handlers=handlers,
            )
    except ValueError as error:
        raise FinetuningError(f"report_to={list(report_to)}: {one_line(error)}") from error
    if len(accelerator.log_with) != len(report_to):
        raise FinetuningError(f"report_to={list(report_to)}: not all of their packages are installed")
    passes = accelerator.num_processes * training.gradient_accumulation_steps
    if training.train_batch_size % passes:
        raise FinetuningError(
            f"train_batch_size={training.train_batch_size} cannot be shared among {accelerator.num_processes} "
            f"processes in {training.gradient_accumulation_steps} passes each; choose a multiple of {passes}"
        )
    if report_to:
        accelerator.init_trackers("ld-pruner", config=training.model_dump(exclude_none=True))
    return accelerator
