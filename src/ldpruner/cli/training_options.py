"""One option for each setting of `Training`: its type, default and help are those of the field."""

import inspect
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ldpruner.cli.answer import MadeBy
from ldpruner.cli.options import TRAINING
from ldpruner.cli.parsing import literal
from ldpruner.finetuning.settings import Training

CONFIG = Annotated[
    Path | None,
    typer.Option(
        help="A YAML or JSON file of these settings; options on the command line come first.",
        rich_help_panel=TRAINING,
    ),
]


def _training(config: Path | None, **chosen: Any) -> Training:
    """The settings of a file, and over them those of the command line."""
    settings: dict[str, Any] = {}
    if config is not None:
        from ldpruner.recipes import read_yaml

        settings = read_yaml(config)
    return Training(**{**settings, **{name: _read(value) for name, value in chosen.items() if value is not None}})


def _read(value: Any) -> Any:
    """A text option's value: `none` is None, a number is a number."""
    if not isinstance(value, str):
        return value
    return None if value.lower() == "none" else literal(value)


def _option(field: FieldInfo, text: str) -> Any:
    """The annotation of an option; what is not given stays None, so that a file's setting counts."""
    kind, metavar = cast(Any, field.annotation), None
    if get_origin(kind) in (Union, types.UnionType):  # `none` is a value too
        kind, metavar = str, "|".join(map(_words, get_args(kind)))
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
    option = typer.Option(help=f"{text} Default: {default.lower()}.", metavar=metavar, rich_help_panel=TRAINING)
    return Annotated[kind | None, option]


def _words(kind: Any) -> str:
    """What an option's type takes, as its help writes it."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "INTEGER", float: "FLOAT", type(None): "none"}[kind]


def _help_texts() -> dict[str, str]:
    """What the docstring of Training says of each field: of the form `name, name: text`."""
    attributes = inspect.cleandoc(Training.__doc__ or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8,}.*)*)", attributes, re.MULTILINE):
        sentence = " ".join(text.split())
        sentence = sentence[0].upper() + sentence[1:]
        texts.update(dict.fromkeys(re.split(r",\s*", names), sentence))
    return texts


def _signature() -> inspect.Signature:
    """An option for each setting, and `--config`; what is not given is None."""
    help_of = _help_texts()
    annotations = {name: _option(field, help_of[name]) for name, field in Training.model_fields.items()}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in {**annotations, "config": CONFIG}.items()
        ]
    )


setattr(_training, "__signature__", _signature())  # noqa: B010
TRAINING_OPTIONS = Annotated[Training, MadeBy(_training)]
