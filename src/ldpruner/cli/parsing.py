"""What the words of a command line mean: probes, budgets, and arguments of a pipeline's call."""

import json
from pathlib import Path
from typing import Any

import torch
import typer

from ldpruner.budget import Budget
from ldpruner.errors import DataError
from ldpruner.evaluation.media import read_picture
from ldpruner.finetuning import Training
from ldpruner.pipelines.probe import Probe


def probe_of(
    samples: int, steps: int, seed: int, prompts: Path | None, guidance: float | None, call: list[str] | None
) -> Probe:
    """The probe of the options that every drawing command has."""
    call_ = call_arguments(call)
    return Probe(samples=samples, steps=steps, seed=seed, guidance=guidance, prompts=prompts, call=call_)


def call_arguments(texts: list[str] | None) -> dict[str, Any]:
    """The arguments of `--call name=value`; a value that is JSON is read as such, an image is a file's path."""
    given = {name: _literal(value) for name, value in (_pair(text, "--call") for text in texts or [])}
    return {name: _opened(name, value) if "image" in name else value for name, value in given.items()}


def budget_of(texts: list[str]) -> Budget:
    """The budget of `--budget name=value`, repeated or with commas."""
    pairs = dict(_pair(part, "--budget") for text in texts for part in text.split(","))
    return Budget(**{name: _literal(value) for name, value in pairs.items()})


def training_of(texts: list[str] | None) -> Training:
    """The settings of `--training name=value`, repeated or with commas."""
    pairs = dict(_pair(part, "--training") for text in texts or [] for part in text.split(","))
    return Training(**{name: _literal(value) for name, value in pairs.items()})


def changed(probe: Probe, prompts: Path | None, call: list[str] | None) -> Probe:
    """A run's probe with the prompts of a text file, and with other arguments of the call; images are given anew."""
    read = {"prompts": Probe(prompts=prompts).prompts} if prompts is not None else {}
    return probe.model_copy(update={**read, "call": {**probe.call, **call_arguments(call)}})


def one_of(value: str, known: tuple[Any, ...], option: str) -> Any:
    """The value, if it is one that the option knows."""
    if value not in known:
        raise typer.BadParameter(f"{option} {value!r}: choose one of {', '.join(known)}")
    return value


def precision(name: str | None) -> torch.dtype | None:
    """The precision of a name such as float16."""
    found = getattr(torch, name, None) if name else None
    if name and not isinstance(found, torch.dtype):
        raise typer.BadParameter(f"--dtype {name!r}: choose float32, float16 or bfloat16")
    return found


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _opened(name: str, value: Any) -> Any:
    """The images of one path or of several; what is no text stays as it is."""
    if isinstance(value, list):
        return [_opened(name, one) for one in value]
    if not isinstance(value, str):
        return value
    try:
        return read_picture(Path(value))
    except DataError as error:
        raise typer.BadParameter(f"--call {name}={value!r}: {error}; give the path of an image") from error


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{option} {text!r}: write it as name=value")
    return name, value
