"""The model card of a pruned pipeline: what was removed, what that cost, and how to open it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from ldpruner.budget import QUANTITIES
from ldpruner.evaluation.evaluate import Evaluation
from ldpruner.evaluation.gallery import SOUND
from ldpruner.evaluation.measures import COSTS, Measure
from ldpruner.profiling.benchmark import Comparison
from ldpruner.publishing.markdown import code, plain, table
from ldpruner.publishing.origin import Origin
from ldpruner.selection.plan import PLAN_FILE, Plan

LICENSE_UNKNOWN = "The licence of the original is not known here. Find it before you use this pipeline."
METHOD = "[LD-Pruner](https://arxiv.org/abs/2404.11936)"
UNITS: Mapping[str, tuple[str, float]] = {
    "latency_ms": ("latency of one call, ms", 1),
    "latency_ratio": ("latency, ratio", 1),
    "peak_memory_bytes": ("peak memory, MiB", 2**20),
    "parameters": ("parameters of the denoiser, M", 1e6),
    "macs": ("GMACs of one denoiser call", 1e9),
}
WORDS = {"macs": "MACs"}


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        repo: its place on the Hub.
        revision: the branch, if it is not the main one.
        pipeline: the pipeline's class.
        component, network: the pruned network's name, and its class before pruning.
        parameters: how many the network has left.
        task: in the Hub's words; None if unclear.
        origin: the original.
        plan: what was removed.
        is_finetuned: whether the weights were trained after pruning.
        needs_code: whether diffusers opens it only with the code in its folder.
        evaluation: cost and quality of both pipelines; None if not measured.
        evaluated: `pruned` or `recovered`: which pipeline was evaluated.
        comparison: cost of both pipelines; None if not measured.
        samples: files in `samples/` with samples of several pipelines on the same seeds.
        rows: the pipelines of these samples.
        prompts: of these samples.
    """

    repo: str
    pipeline: str
    component: str
    network: str
    parameters: int
    origin: Origin
    plan: Plan
    is_finetuned: bool
    needs_code: bool
    task: str | None = None
    revision: str | None = None
    evaluation: Evaluation | None = None
    evaluated: str = "pruned"
    comparison: Comparison | None = None
    samples: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def text(self) -> str:
        """The card as Markdown, with its header in YAML."""
        header = yaml.safe_dump(self._header(), sort_keys=False, allow_unicode=True)
        sections = [self._introduction(), self._usage(), self._removed(), *self._results(), *self._sheets()]
        return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"

    def _header(self) -> dict[str, Any]:
        """The entries that the Hub reads. It knows no relation for pruning: `finetune` is the nearest."""
        base = {"base_model": self.origin.hub_id, "base_model_relation": "finetune"} if self.origin.hub_id else {}
        entries = {**self.origin.license, **base, "library_name": "diffusers", "pipeline_tag": self.task}
        tags = ["diffusers", "ld-pruner", "pruned"]
        return {name: value for name, value in entries.items() if value is not None} | {"tags": tags}

    def _introduction(self) -> str:
        original = self.origin.name
        link = f"[{plain(original)}](https://huggingface.co/{original})" if self.origin.hub_id else code(original)
        trained = "The pruned network was finetuned." if self.is_finetuned else "The weights are the original's."
        license_name = self.origin.license.get("license_name", self.origin.license.get("license"))
        terms = f"Licence of the original: {plain(license_name)}." if license_name else LICENSE_UNKNOWN
        removed = _count(len(self.plan.removed), "operator")
        return (
            f"# {plain(self.repo.rpartition('/')[2])}\n\n"
            f"{link}, pruned with ld-pruner {version('ld-pruner')} ({METHOD}): without {removed} of "
            f"{code(self.component)}, a {code(self.network)}. {trained} {terms}"
        )

    def _usage(self) -> str:
        options = [json.dumps(self.repo), *([f"revision={json.dumps(self.revision)}"] if self.revision else [])]
        plainly = ", ".join([*options, *(["trust_remote_code=True"] if self.needs_code else [])])
        note = (
            "`trust_remote_code` allows the code in this repository that rebuilds the pruned network. With ld-pruner "
            "none of it runs:\n\n```python\nimport ldpruner\n\n"
            f"pipeline = ldpruner.load({', '.join(options)})\n```"
            if self.needs_code
            else "It is a plain diffusers pipeline: no other package is needed."
        )
        return (
            "## Use\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({plainly})\n```\n\n{note}"
        )

    def _removed(self) -> str:
        plan, lines = self.plan, ["## What was removed"]
        origin = [f"Budget: {code(plan.budget)}." if plan.budget else "", f"Rule: {plan.rule}." if plan.rule else ""]
        if plan.predicted is not None:
            left = plan.predicted.model_dump()
            kept = ", ".join(f"{100 * left[name]:.1f} % of the {WORDS.get(name, name)}" for name in QUANTITIES)
            machine = f" (latency on {code(plan.machine)})" if plan.machine is not None else ""
            origin.append(f"Predicted to be left: {kept}{machine}.")
        lines.append(" ".join(filter(None, [*origin, f"{self.parameters:,} parameters are left."])))
        rows = [
            (code(planned.operator), planned.modification, f"{planned.score:.4g}", _along(planned.removal.cascaded))
            for planned in plan.removed
        ]
        lines.append(table(("operator", "becomes", "score", "goes with it"), rows))
        command = f"ldpruner apply {PLAN_FILE} MODEL --out DIR"
        lines.append(f"`{PLAN_FILE}` holds the plan; `{command}` puts it on another checkpoint.")
        return "\n\n".join(lines)

    def _results(self) -> Iterator[str]:
        if self.evaluation is not None:
            before = " before finetuning" if self.is_finetuned and self.evaluated == "pruned" else ""
            rows = [_measure_row(measure) for measure in self.evaluation.metrics]
            columns = ("metric", "original", f"pruned{before}", "interval", "noise floor")
            yield f"## Cost and quality\n\n{table(columns, rows)}\n\n{_protocol(self.evaluation)}"
        elif self.comparison is not None:
            yield f"## Cost\n\n{_comparison(self.comparison)}"
        else:
            yield "## Cost and quality\n\nNot measured."

    def _sheets(self) -> Iterator[str]:
        if not self.samples:
            return
        rows = ", ".join(code(row) for row in self.rows)
        missing = " None is finetuned." if self.is_finetuned and "recovered" not in self.rows else ""
        lines = [f"## Samples\n\nSamples on the same seeds, from top to bottom: {rows}.{missing}"]
        lines += [f"{index + 1}. {code(prompt)}" for index, prompt in enumerate(self.prompts)]
        for name in self.samples:
            picture = "" if name.endswith(SOUND) else "!"
            lines.append(f"{picture}[{plain(name)}](samples/{quote(name)})")
        yield "\n\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _along(cascaded: tuple[str, ...]) -> str:
    return ", ".join(map(code, cascaded))


def _measure_row(measure: Measure) -> tuple[str, ...]:
    title, unit = UNITS.get(measure.metric, (measure.metric.replace("_", " "), 1))
    arrow = "↑" if measure.higher_is_better else "↓"
    values = [measure.original, measure.pruned, *(measure.interval or (None, None)), measure.noise_floor]
    original, pruned, low, high, noise = ["" if value is None else f"{value / unit:.4g}" for value in values]
    return f"{plain(title)} {arrow}", original, pruned, f"{low} to {high}" if low else "", noise


def _protocol(evaluation: Evaluation) -> str:
    """How the numbers were made, without the names of local folders."""
    protocol = evaluation.protocol
    probe = protocol.get("probe") or {}
    reference, seeds = protocol.get("reference") or {}, protocol.get("seeds") or {}
    real = reference.get("digest")
    facts = {
        "samples": protocol.get("samples"),
        "steps": probe.get("steps"),
        "guidance": probe.get("guidance"),
        "prompts": len(probe.get("prompts") or ()) or None,
        "seed": " and ".join(f"{seed} ({name.replace('_', ' ')})" for name, seed in seeds.items()) or None,
        "features": _without_folder(protocol.get("features")),
        "reference": f"{reference.get('samples')} files, digest {real}" if real else "samples of the original",
        "device": protocol.get("device"),
        "precision": protocol.get("precision"),
        "threads": protocol.get("threads"),
        "versions": ", ".join(f"{name} {number}" for name, number in (protocol.get("versions") or {}).items()),
    }
    listed = "; ".join(f"{name} {plain(value)}" for name, value in facts.items() if value is not None)
    costs = any(measure.metric in COSTS for measure in evaluation.metrics)
    timings = " Intervals of latencies are the 10th to the 90th percentile of the timings." if costs else ""
    return (
        f"Protocol: {listed}. Intervals are 95 % confidence intervals of the pruned pipeline.{timings} The noise "
        "floor is the original's own value between two sets of seeds."
    )


def _without_folder(name: Any) -> Any:
    """The last part of an absolute path; all else as it is."""
    return Path(name).name if isinstance(name, str) and Path(name).is_absolute() else name


def _comparison(comparison: Comparison) -> str:
    costs = comparison.pipelines
    rows = [
        (UNITS[name][0], *(f"{_cost(cost, name) / UNITS[name][1]:.4g}" for cost in costs))
        for name in ("latency_ms", "peak_memory_bytes", "parameters", "macs")
    ]
    ratio = comparison.latency_ratio
    spread = f" Latency ratio {ratio.median:.3f} ({ratio.p10:.3f} to {ratio.p90:.3f})." if ratio is not None else ""
    costs_table = table(("", *(plain(cost.pipeline) for cost in costs)), rows)
    timings = f"Medians of {comparison.rounds} calls of one sample, timed in turn on {code(comparison.machine)}."
    return f"{costs_table}\n\n{timings}{spread}"


def _cost(cost: Any, name: str) -> float:
    return float(cost.latency_ms.median if name == "latency_ms" else getattr(cost, name))
