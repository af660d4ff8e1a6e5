"""Do gains add up? Calls of original and pruned denoisers, each plain and with another tool, timed in turn.

    python -m benchmarks.stacking [--models zoo:satellite] [--tools onnx] [--device cuda]
    python -m benchmarks.stacking --compute-bound

A round times four calls on one sample: original and pruned, and both with the tool. So each round has two ratios:
pruned over original, and pruned with the tool over original with the tool. Peak memory is that of a process of its
own, beyond what its imports take. Plans remove the largest blocks that fit into the cut of MACs.

`--compute-bound` times plans of the Stable Diffusion v1.4 U-Net at 64x64 latents: how much of the cut in MACs is a cut
in time. `--small` stands in for that model, to try the script.
"""

import argparse
import functools
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import CLIPTokenizer

import ldpruner
from benchmarks.full_size import open_full_size
from benchmarks.records import RESULTS, cell, markdown, read
from ldpruner.operators.discovery import Candidate, denoiser_macs, operators_of
from ldpruner.pipelines.denoiser import Denoiser, copied, find_denoiser
from ldpruner.pipelines.fingerprints import count_parameters
from ldpruner.pipelines.running import networks
from ldpruner.profiling.benchmark import Percentiles
from ldpruner.profiling.costs import elapsed_ms
from ldpruner.pruning.opening import open_pipeline
from ldpruner.selection.plan import PlannedRemoval

STUDY, COMPUTE_BOUND = "stacking", "compute_bound"
FULL_SIZE = "stable-diffusion-v1-4"
MODELS = ("zoo:satellite", "zoo:emoji", "zoo:digits", FULL_SIZE)
TOOLS = ("compiled", "onnx", "openvino", "int8", "cached")
EXPORTED = ("onnx", "openvino")
CUT = 0.35  # of the MACs
COMPUTE_BOUND_CUTS = (0.25, 0.35, 0.5)
BLOCKS = ("resnet", "transformer", "transformer_block", "attention", "feed_forward")
ROUNDS = {FULL_SIZE: 5}
MANY_ROUNDS = 31
SAME = 0.1  # the ratios agree if they differ by less

logger = logging.getLogger(__name__)


def main() -> None:
    """Measures every cell that is missing; one that fails does not stop the others."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for library in ("onnx_ir", "onnxscript", "torch"):
        logging.getLogger(library).setLevel(logging.WARNING)
    options = _options()
    if options.peak_of:
        sys.stdout.write(json.dumps(_peak(Path(options.peak_of), options.tools[0], options.device)) + "\n")
        return
    common = {"device": options.device, "threads": torch.get_num_threads(), "small": options.small}
    if options.compute_bound:
        measure = functools.partial(_compute_bound, options.device, small=options.small)
        cell(COMPUTE_BOUND, {"model": FULL_SIZE, "cuts": COMPUTE_BOUND_CUTS, **common}, measure, options.results)
        return
    failed = []
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.work) as place:
            folders = functools.cache(functools.partial(_saved, model, Path(place), options.device, options.small))
            for tool in options.tools:
                try:
                    measure = functools.partial(_stacked, folders, tool, model, options.device)
                    cell(STUDY, {"model": model, "tool": tool, "cut": CUT, **common}, measure, options.results)
                except Exception:  # logged with its traceback
                    logger.exception("%s with %s failed", model, tool)
                    failed.append(f"{model} with {tool}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tools", nargs="+", choices=(*TOOLS, "plain"), default=TOOLS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute-bound", action="store_true", help="the cut in time over the cut in MACs")
    parser.add_argument("--small", action="store_true", help="a narrow Stable Diffusion v1.4")
    parser.add_argument("--work", type=Path, help="for pipelines while they are measured: 25 GB at full size")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small and options.results == RESULTS and not options.peak_of:
        parser.error("--small needs --results: the stand-in must not be among the committed results")
    return options


# Pipelines and plans


def _opened(model: str, device: str, *, small: bool) -> DiffusionPipeline:
    if model != FULL_SIZE:
        return open_pipeline(model, device)
    threads = torch.get_num_threads()
    pipeline = open_full_size(torch.device(device), small=small).pipeline
    torch.set_num_threads(threads)
    letters = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]  # a vocabulary that can be saved
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    pipeline.register_modules(tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77))
    return pipeline


def _recorded(pipeline: DiffusionPipeline) -> Denoiser:
    """A call of the denoiser on one sample, without guidance where that can be left out."""
    probe = ldpruner.Probe(samples=1, steps=10).completed(pipeline)
    probe = probe if probe.prompts is None else probe.replace(guidance=1.0)
    return find_denoiser(pipeline, None, probe.arguments(pipeline, [0]))


def plan_of(denoiser: Denoiser, cut: float) -> ldpruner.Plan:
    """Removes blocks, those of the most MACs first, each if no more than `cut` of all MACs is gone with it."""
    left, chosen = cut * denoiser_macs(denoiser), list[Candidate]()
    blocks = [operator for operator in operators_of(denoiser) if operator.module_type in BLOCKS]
    for operator in sorted(blocks, key=lambda operator: -operator.macs):
        candidate = operator.candidates[0]
        is_free = all(set(candidate.leaves).isdisjoint(other.leaves) for other in chosen)
        if is_free and candidate.macs <= left:
            left -= candidate.macs
            chosen.append(candidate)
    removed = tuple(PlannedRemoval(removal=candidate.removal) for candidate in chosen)
    return ldpruner.Plan(component=denoiser.component, removed=removed)


def _saved(model: str, place: Path, device: str, small: bool) -> dict[str, Path]:
    """The folders of the original and the pruned pipeline."""
    pipeline = _opened(model, device, small=small)
    pruned = ldpruner.prune(pipeline, plan_of(_recorded(pipeline), CUT))
    folders = {"original": place / "original", "pruned": place / "pruned"}
    for name, part in (("original", pipeline), ("pruned", pruned)):
        ldpruner.save(part, folders[name])
    return folders


# Tools


def _with_tool(folder: Path, tool: str, device: str) -> Denoiser:
    """The denoiser of a saved pipeline, made faster or smaller by a tool, and a recorded call of it."""
    denoiser = _recorded(open_pipeline(folder, device))
    if tool == "compiled":
        denoiser.module.compile(dynamic=False)
    elif tool == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(denoiser.module, Int8WeightOnlyConfig())
    return denoiser


def _tool_folder(folder: Path, tool: str, device: str) -> Path:
    """The folder of a pipeline for a tool: exported if the tool is another runtime."""
    if tool not in EXPORTED:
        return folder
    pipeline, target = open_pipeline(folder, device), folder.with_name(f"{folder.name}-{tool}")
    ldpruner.export(pipeline, target, tool, probe=ldpruner.Probe(samples=1, steps=2).completed(pipeline))
    return target


def _why_not(network: nn.Module, tool: str) -> str | None:
    """Why a tool does not apply to a network."""
    if tool == "cached" and not hasattr(network, "enable_cache"):
        return f"{type(network).__name__} has no FirstBlockCache"
    return None


def _call(denoiser: Denoiser) -> Callable[[], Any]:
    """The recorded call, also of a compiled network."""

    @torch.no_grad()
    def call() -> Any:
        args, kwargs = copied((denoiser.arguments, denoiser.options))
        return denoiser.module(*args, **kwargs)

    return call


# Measurements


def _stacked(folders: Callable[[], dict[str, Path]], tool: str, model: str, device: str) -> dict[str, Any]:
    """Latencies and ratios of a round, and the peaks of memory."""
    plain = {name: _with_tool(folder, "plain", device) for name, folder in folders().items()}
    if reason := _why_not(plain["original"].module, tool):
        return {"does_not_apply": reason}
    places = {name: _tool_folder(folder, tool, device) for name, folder in folders().items()}
    tooled = {f"{name} + {tool}": _with_tool(folder, tool, device) for name, folder in places.items()}
    denoisers = {**plain, **tooled}
    differences = {name: _difference(plain[name], tooled[f"{name} + {tool}"]) for name in plain}
    times = _timed(denoisers, ROUNDS.get(model, MANY_ROUNDS), device)
    without, together = (
        [after / before for before, after in zip(times[f"original{end}"], times[f"pruned{end}"], strict=True)]
        for end in ("", f" + {tool}")
    )
    result = {
        "macs": {name: denoiser_macs(denoiser) for name, denoiser in plain.items()},
        "parameters": {name: count_parameters(denoiser.module) for name, denoiser in plain.items()},
        "ms": {name: Percentiles.of(values).model_dump() for name, values in times.items()},
        "pruned_over_original": Percentiles.of(without).model_dump(),
        "with_tool": Percentiles.of(together).model_dump(),
        "agreement": Percentiles.of([both / one for one, both in zip(without, together, strict=True)]).model_dump(),
        "output_difference": differences,
    }
    del plain, tooled, denoisers
    peaks = {name: _peak_in_process(folder, "plain", device) for name, folder in folders().items()}
    peaks |= {f"{name} + {tool}": _peak_in_process(folder, tool, device) for name, folder in places.items()}
    for folder in set(places.values()) - set(folders().values()):
        shutil.rmtree(folder)
    return {**result, "peak_bytes": peaks}


def _timed(denoisers: dict[str, Denoiser], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of calls in turn; the first round, which compiles, does not count."""
    times: dict[str, list[float]] = {name: [] for name in denoisers}
    for turn in range(rounds + 2):
        for name, denoiser in denoisers.items():
            elapsed = elapsed_ms(_call(denoiser), torch.device(device))
            if turn > 1:
                times[name].append(elapsed)
    return times


def _difference(plain: Denoiser, tooled: Denoiser) -> float:
    """The relative difference of the outputs on the same call."""
    args, kwargs = plain.arguments, plain.options
    same_call = Denoiser(tooled.component, tooled.module, args, kwargs)
    before, after = (tree_leaves(_call(denoiser)())[0].double() for denoiser in (plain, same_call))
    return float((before - after).norm() / before.norm())


def _peak_in_process(folder: Path, tool: str, device: str) -> int:
    """The peak of a call in a process of its own."""
    words = ["-m", "benchmarks.stacking", "--peak-of", str(folder), "--tools", tool, "--device", device]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _peak(folder: Path, tool: str, device: str) -> int:
    """Bytes of this process at the peak of the second call, beyond those before the pipeline was opened.

    On CUDA those of torch's allocator. The first call compiles.
    """
    if find_spec("torchao") is not None:
        import torchao  # noqa: F401  (so that every tool starts from the same imports)
    before = resident("VmRSS")
    call = _call(_with_tool(folder, tool, device))
    call()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    call()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _compute_bound(device: str, *, small: bool) -> dict[str, Any]:
    """For each plan the cut in time and in MACs, timed in turn with the original."""
    pipeline = _opened(FULL_SIZE, device, small=small)
    original = _recorded(pipeline)
    macs, plans = denoiser_macs(original), []
    for cut in COMPUTE_BOUND_CUTS:
        pruned = ldpruner.prune(pipeline, plan_of(original, cut))
        network = networks(pruned)[original.component]
        pair = {"original": original, "pruned": Denoiser(original.component, network, *_arguments(original))}
        times = _timed(pair, ROUNDS[FULL_SIZE], device)
        cut_in_macs = 1 - denoiser_macs(pair["pruned"]) / macs
        ratios = [after / before for before, after in zip(times["original"], times["pruned"], strict=True)]
        shares = [(1 - ratio) / cut_in_macs for ratio in ratios]
        plans.append(
            {
                "cut": cut,
                "cut_in_macs": cut_in_macs,
                "original_ms": statistics.median(times["original"]),
                "time_ratio": Percentiles.of(ratios).model_dump(),
                "share": Percentiles.of(shares).model_dump(),
            }
        )
    return {"macs": macs, "plans": plans}


def _arguments(denoiser: Denoiser) -> Sequence[Any]:
    return denoiser.arguments, denoiser.options


# Tables


def table() -> Iterator[str]:
    """A row for each model and tool."""
    head = ["model", "tool", "original", "with the tool", "pruned over original", "with the tool, both", "agreement"]
    head += ["peak memory: original, pruned", "with the tool"]
    yield from markdown(head, [_row(record["settings"], record["result"]) for record in read(STUDY)])


def _row(settings: dict[str, Any], result: dict[str, Any]) -> list[str]:
    model, tool = settings["model"], settings["tool"]
    if "does_not_apply" in result:
        return [model, tool, f"does not apply: {result['does_not_apply']}", *[""] * 6]
    ms, peaks = result["ms"], result["peak_bytes"]
    names = ("original", "pruned")
    return [
        f"{model}, {settings['device']}",
        tool,
        f"{ms['original']['median']:.1f} ms",
        f"{ms[f'original + {tool}']['median']:.1f} ms",
        *(_spread(result[name]) for name in ("pruned_over_original", "with_tool", "agreement")),
        ", ".join(f"{peaks[name] / 2**20:,.0f} MiB" for name in names),
        ", ".join(f"{peaks[f'{name} + {tool}'] / 2**20:,.0f} MiB" for name in names),
    ]


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3f} ({values['p10']:.3f} to {values['p90']:.3f})"


def compute_bound_table() -> Iterator[str]:
    """A row for each plan."""
    head = ["MACs cut", "latency ratio, median (10 to 90 %)", "cut in time over cut in MACs"]
    plans = [plan for record in read(COMPUTE_BOUND) for plan in record["result"]["plans"]]
    yield from markdown(
        head, [[f"{plan['cut_in_macs']:.1%}", _spread(plan["time_ratio"]), _spread(plan["share"])] for plan in plans]
    )


if __name__ == "__main__":
    main()
