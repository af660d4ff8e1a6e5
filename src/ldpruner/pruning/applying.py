"""A plan on another checkpoint, or a variant of the same architecture, saved as a folder."""

from pathlib import Path

from diffusers import DiffusionPipeline

from ldpruner.operators.patching import modified
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.probe import Probe
from ldpruner.progress import Progress, reported, unreported
from ldpruner.pruning.compatibility import find_network, latency_note
from ldpruner.pruning.opening import open_pipeline
from ldpruner.pruning.saving import check_replaceable, save
from ldpruner.pruning.serialization import load_meta
from ldpruner.pruning.surgery import prune
from ldpruner.selection.plan import Plan
from ldpruner.values import Value


class Application(Value):
    """What a plan does to a pipeline.

    Attributes:
        model: the name of the pipeline.
        pipeline: its class.
        component: the network that the plan is for.
        network: the class of that network.
        removals: how many operators are removed.
        original_parameters, parameters: of the network, before and after.
        folder: where the pruned pipeline is saved.
        note: says that latencies were measured on another machine; empty if they were not.
    """

    model: str
    pipeline: str
    component: str
    network: str
    removals: int
    original_parameters: int
    parameters: int
    folder: Path
    note: str = ""


def apply_plan(
    plan: Plan,
    model: str,
    folder: Path | str,
    *,
    component: str | None = None,
    probe: Probe | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = unreported,
) -> Application:
    """Prunes a pipeline by a plan, perhaps of another checkpoint, and saves the result as a folder.

    Args:
        plan: what to remove.
        model: a folder, a Hub id, or zoo:NAME; its weights are read.
        folder: where the pruned pipeline goes; only what ld-pruner has saved is replaced.
        component: which network; None is the plan's, or the sole one that has its operators.
        probe: how the pipeline is called, for the check of native blocks; see `prune`.
        device, dtype: see `open_pipeline`.

    Raises:
        PlanMismatch: the plan was made for another architecture.
        StorageError: the folder cannot be written, or holds something else.
    """
    check_replaceable(folder)  # before the work
    pipeline = reported(progress, f"opening {model}", lambda: open_pipeline(model, device, dtype))
    plan = _for_component(plan, component)
    application = _application(plan, pipeline, model, folder)
    reported(progress, "pruning and saving", lambda: save(prune(pipeline, plan, probe=probe), folder))
    return application


def preview_plan(plan: Plan, model: str, folder: Path | str, *, component: str | None = None) -> Application:
    """What `apply_plan` would do. Only the configuration files of the model are read; nothing is written.

    Raises:
        PlanMismatch, StorageError: as `apply_plan`.
    """
    check_replaceable(folder)
    return _application(_for_component(plan, component), load_meta(model), model, folder)


def _for_component(plan: Plan, component: str | None) -> Plan:
    return plan if component is None else plan.replace(component=component)


def _application(plan: Plan, pipeline: DiffusionPipeline, model: str, folder: Path | str) -> Application:
    component, network = find_network(pipeline, plan)
    removals = [planned.removal for planned in plan.removed]
    with modified(network, removals):
        parameters = count_parameters(network)
    return Application(
        model=model,
        pipeline=type(pipeline).__name__,
        component=component,
        network=type(network).__name__,
        removals=len(removals),
        original_parameters=count_parameters(network),
        parameters=parameters,
        folder=Path(folder),
        note=latency_note(network, plan),
    )
