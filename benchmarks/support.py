"""Which of diffusers' own pipelines can be pruned, with the small random configurations of its own tests.

    git clone https://github.com/huggingface/diffusers
    pip install ftfy torchvision
    OMP_NUM_THREADS=1 python -m benchmarks.support --tests diffusers/tests [--only NAME ...]

Each pipeline is saved, loaded, scored, pruned, saved, and loaded again. The text encoders and tokenizers that the
tests take from the Hub are replaced by small random ones. Where that does not work, the pipeline of `tests/families`
is used.
"""

import argparse
import functools
import importlib
import inspect
import logging
import math
import resource
import signal
import sys
import tempfile
import unittest
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import diffusers
import torch
from diffusers import DiffusionPipeline

import ldpruner
from benchmarks.records import cell, markdown, read
from benchmarks.support_parts import instead_of_the_hub
from ldpruner.errors import one_line
from ldpruner.pipelines.sampling import sample_latents
from ldpruner.scoring.runner import ScoringRun
from ldpruner.selection.plan import Plan, PlannedRemoval
from tests.families import FAMILIES, Family
from tests.families.parts import picture

SECONDS = 120  # for one pipeline
MEMORY = 12 * 2**30  # bytes of address space
OPERATORS = 4  # the largest, which are scored with one of each type
PACKAGE = "diffusers_tests"  # the name under which the tests are imported; they use relative imports
NEEDED = ("ftfy", "torchvision")  # by some pipelines, which fail in their own way without them
NOT_PASSED = ("generator", "return_dict", "batch_size")  # the probe gives them
UNTRIED = ("configuration", "run", "diffusers", "time")  # stages that say nothing about ld-pruner

OUTCOMES = ("pruned", "cannot be pruned", "not tried")

# Pipelines that take the parts of a family, with further arguments of their call.
SIZE, PICTURE = {"height": 16, "width": 16}, picture(16)
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "StableDiffusionSAGPipeline": ("stable-diffusion", SIZE),
    "StableDiffusionPanoramaPipeline": ("stable-diffusion", SIZE),
    "SemanticStableDiffusionPipeline": ("stable-diffusion", SIZE),
    "StableDiffusionModelEditingPipeline": ("stable-diffusion", SIZE),
    "TextToVideoZeroSDXLPipeline": ("stable-diffusion-xl", {**SIZE, "video_length": 2, "t0": 0, "t1": 1}),
    "VideoToVideoSDPipeline": ("text-to-video", {"video": [PICTURE, PICTURE]}),
    "LTXI2VLongMultiPromptPipeline": ("ltx", {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 8}),
}

# Builds a pipeline, and gives the arguments of its call.
Configuration: TypeAlias = Callable[[], tuple[DiffusionPipeline, dict[str, Any]]]


def main() -> None:
    """Tries every pipeline that was not tried."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=Path, required=True, help="the folder tests of a checkout of diffusers")
    parser.add_argument("--only", nargs="+", help="names of pipeline classes")
    options = parser.parse_args()
    choices = configurations(options.tests)
    for name in shipped():
        if not options.only or name in options.only:
            settings = {"pipeline": name, "diffusers": diffusers.__version__}
            cell("support", settings, functools.partial(_first_that_runs, choices.get(name, [])))


def shipped() -> list[str]:
    """The names of all pipeline classes of diffusers that can be imported here."""
    names = set()
    for name in dir(diffusers):
        value = getattr(diffusers, name)
        is_real = inspect.isclass(value) and type(value).__name__ != "DummyObject"
        if is_real and issubclass(value, DiffusionPipeline) and value is not DiffusionPipeline:
            names.add(value.__name__)
    return sorted(names)


def configurations(tests: Path) -> Mapping[str, list[Configuration]]:
    """The small configurations of each pipeline class."""
    _check_packages()
    choices: dict[str, list[Configuration]] = defaultdict(list)
    for case in _test_classes(tests):
        pipeline = inspect.getattr_static(case, "pipeline_class", None)
        if inspect.isclass(pipeline) and issubclass(pipeline, DiffusionPipeline):
            names = (base.__name__ for base in pipeline.__mro__ if hasattr(diffusers, base.__name__))
            choices[next(names)].append(functools.partial(_of_test, case))
    for family in FAMILIES.values():
        choices[type(family.pipeline()).__name__].append(functools.partial(_of_family, family))
    for name, (family_name, call) in ALIKE.items():
        if hasattr(diffusers, name):
            choices[name].append(functools.partial(_of_parts, name, FAMILIES[family_name], call))
    return choices


def _check_packages() -> None:
    """Stops where a package is missing, so that no pipeline is recorded to fail for it."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sys.exit(f"pip install {' '.join(missing)}; some pipelines of diffusers need it")


def _test_classes(tests: Path) -> Iterator[Any]:
    """The classes with a configuration in the modules of diffusers' tests that can be imported."""
    link = Path(tempfile.mkdtemp()) / PACKAGE
    link.symlink_to(tests.resolve())
    sys.path.insert(0, str(link.parent))
    sys.modules["tests"] = importlib.import_module(PACKAGE)  # two of them name it so
    for package in ("parameterized", "requests_mock"):  # which the tests use for their other checks
        sys.modules.setdefault(package, mock.MagicMock())
    for path in sorted(tests.glob("pipelines/**/test_*.py")):
        module = ".".join((PACKAGE, *path.relative_to(tests).with_suffix("").parts))
        try:
            members = vars(importlib.import_module(module))
        except (Exception, unittest.SkipTest) as error:  # noqa: BLE001  (a test lacks a package)
            logging.info("%s is not read: %s", module, one_line(error))
            continue
        yield from (value for value in members.values() if inspect.isclass(value) and _is_configured(value))


def _is_configured(value: type) -> bool:
    return inspect.getattr_static(value, "get_dummy_components", None) is not None


def _of_test(case: Any) -> tuple[DiffusionPipeline, dict[str, Any]]:
    torch.manual_seed(0)
    test = case()
    pipeline = case.pipeline_class(**test.get_dummy_components())
    takes_device = "device" in inspect.signature(test.get_dummy_inputs).parameters
    inputs = test.get_dummy_inputs(device="cpu") if takes_device else test.get_dummy_inputs()
    return pipeline, {name: value for name, value in inputs.items() if name not in NOT_PASSED}


def _of_family(family: Family) -> tuple[DiffusionPipeline, dict[str, Any]]:
    return _with_call(family.pipeline(), {"output_type": "latent", **family.call})


def _of_parts(name: str, family: Family, call: Mapping[str, Any]) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """A pipeline with the parts of a family, None for what that lacks."""
    build = getattr(diffusers, name)
    accepted = inspect.signature(build.__init__).parameters
    needed = [key for key, value in accepted.items() if key != "self" and value.default is value.empty]
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}
    parts = {key: part for key, part in family.pipeline().components.items() if key in accepted}
    return _with_call(build(**{**dict.fromkeys(needed), **parts, **settings}), call)


def _with_call(pipeline: DiffusionPipeline, call: Mapping[str, Any]) -> tuple[DiffusionPipeline, dict[str, Any]]:
    accepted = inspect.signature(type(pipeline).__call__).parameters
    usual = {"prompt": "a red cat", "num_inference_steps": 2, "class_labels": [1]}
    return pipeline, {name: value for name, value in {**usual, **call}.items() if name in accepted}


def _first_that_runs(choices: list[Configuration]) -> dict[str, Any]:
    """What comes of the first configuration that runs without ld-pruner."""
    result = {"stage": "configuration", "error": "no small configuration of it is known"}
    for configuration in choices:
        result = apart(functools.partial(_tried, configuration))
        if result["stage"] not in UNTRIED:
            break
    logging.info("%s", result)
    return result


def apart(trial: Callable[[], dict[str, Any]], seconds: float = SECONDS) -> dict[str, Any]:
    """Tries something in a process of its own: it may take all memory, or never end."""
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, trial))
    process.start()
    there.close()
    result: dict[str, Any] = {"stage": "time", "error": f"over {seconds:g} s"}
    try:
        if here.poll(seconds):
            result = here.recv()
    except EOFError:
        result = {"stage": "crash", "error": "the process died"}
    process.kill()
    process.join()
    return result


def _send(pipe: Any, trial: Callable[[], dict[str, Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send(trial())


def _tried(configuration: Configuration) -> dict[str, Any]:
    """The stage at which a pipeline fails and why; the stage `pruned` where it does not."""
    stage = "configuration"
    try:
        with instead_of_the_hub(), tempfile.TemporaryDirectory() as folder:
            stages = _stages(*configuration(), Path(folder))
            while (next_stage := next(stages, None)) is not None:
                stage = next_stage
    except BaseException as error:  # noqa: BLE001  (any may come)
        return {"stage": stage, "error": one_line(error, 300)}
    return {"stage": "pruned"}


def _stages(pipeline: DiffusionPipeline, inputs: dict[str, Any], folder: Path) -> Iterator[str]:
    """The name of each stage before it runs."""
    yield "run"  # by itself
    pipeline.set_progress_bar_config(disable=True)
    call: Any = pipeline
    call(**inputs)
    is_shipped = hasattr(diffusers, type(pipeline).__name__)  # else a test's own class, without a checker of content
    if is_shipped:
        yield "diffusers"  # which cannot open all that it saves
        pipeline.save_pretrained(folder / "original", safe_serialization=True)
        DiffusionPipeline.from_pretrained(folder / "original")
        yield "open"
        pipeline = ldpruner.load(folder / "original")
    yield "find"
    steps = int(inputs.pop("num_inference_steps", inputs.pop("steps", 2)))
    probe = ldpruner.Probe(samples=2, steps=steps, call=inputs)
    operators = ldpruner.find_operators(pipeline, call=probe.arguments(pipeline, [0]))
    yield "score"
    removal = largest_removable(pipeline, operators, probe)
    yield "prune"
    plan = Plan(removed=(PlannedRemoval(removal=removal),), component=operators[0].component)
    pruned = ldpruner.prune(pipeline, plan, probe=probe)
    latents = sample_latents(pruned, probe, [0])
    if is_shipped:
        yield "reload"
        ldpruner.save(pruned, folder / "pruned")
        if not torch.equal(sample_latents(ldpruner.load(folder / "pruned"), probe, [0]), latents):
            raise ValueError("the reloaded pipeline gives other latents")


def largest_removable(pipeline: DiffusionPipeline, operators: Any, probe: ldpruner.Probe) -> Any:
    """Scores some operators, and returns the removal with most parameters that leaves a network that runs."""
    largest_first = sorted(operators, key=lambda operator: -operator.parameters)
    of_each_type = {operator.module_type: operator for operator in reversed(largest_first)}
    chosen = [*largest_first[:OPERATORS], *of_each_type.values()][: 2 * OPERATORS]
    with ScoringRun(pipeline, chosen, probe) as scoring:
        for _ in scoring:
            pass
        scores = [score for score in scoring.scores().scores if math.isfinite(score.score)]
    return max((score.candidate for score in scores), key=lambda candidate: candidate.parameters).removal


def summary() -> Iterator[str]:
    """How many pipelines can be pruned, cannot, and were not tried."""
    outcomes = [_outcome(record["result"]["stage"]) for record in read("support")]
    counts = [str(outcomes.count(outcome)) for outcome in OUTCOMES]
    yield from markdown(["pipeline classes", *OUTCOMES], [[str(len(outcomes)), *counts]])


def table() -> Iterator[str]:
    """A row for each reason why pipelines are not known to be prunable; failures first."""
    pipelines: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in read("support"):
        result = record["result"]
        if result["stage"] != "pruned":
            reason = result["error"].replace("|", "\\|").replace("`", "'")
            pipelines[_outcome(result["stage"]), reason].append(record["settings"]["pipeline"])
    rows = [[outcome, ", ".join(names), reason] for (outcome, reason), names in sorted(pipelines.items())]
    yield from markdown(["", "pipelines", "reason"], rows)


def _outcome(stage: str) -> str:
    pruned, failed, untried = OUTCOMES
    return pruned if stage == "pruned" else untried if stage in UNTRIED else failed


if __name__ == "__main__":
    main()
