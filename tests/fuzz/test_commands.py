"""Damaged files and odd words given to every command.

Each ends with exit code 0, or with 1 or 2 and one line; no file outside the run folder changes; and what means nothing
is refused.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ldpruner.budget import QUANTITIES
from ldpruner.finetuning.settings import Training
from tests.fuzz.conftest import Place, Run, sizes
from tests.fuzz.strategies import JUNK, Strategy, damaged, json_files, words_like, yaml_files
from tests.fuzz.test_files import CSV

SHORT = ("--samples", "2", "--steps", "1")
TRAIN = ("--max-train-steps", "1", "--train-batch-size", "2", "--validation-steps", "1")
NUMBERS = ("1", "0", "-1", "0.5", "1e-3", "nan", "inf", "true", "none", "9" * 30, "0x10", "", "1,5", "٣")
TYPOS = ("latancy=0.5", "latency=2", "latency=0", "latency=nan", "latency=true", "macs=", "=1", "macs=0.5,macs=0.6")


@dataclass(frozen=True)
class Trial:
    """A command line in a place with some damaged files.

    Attributes:
        words: the command line.
        files: contents by path in the place.
        means_nothing: whether it has to be refused.
    """

    words: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    means_nothing: bool = False


def campaign(run: Run, places: Callable[[], Place], inputs: int, trials: Strategy[Trial]) -> None:
    """Tries some command lines."""
    made: list[Place] = []

    @settings(max_examples=inputs)
    @given(trials)
    def try_one(trial: Trial) -> None:
        place = made.pop() if made else places()
        for name, data in trial.files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        outside, inside = place.files(but=place / "run"), place.files()
        code, out, err = run(*trial.words)
        check_answer(code, out, err)
        assert place.files(but=place / "run") == outside
        assert code or not trial.means_nothing, out
        if not trial.files and place.files() == inside:
            made.append(place)  # as new

    try_one()


def check_answer(code: int, out: str, err: str) -> None:
    """Exit code 0, or 1 or 2 with one line of an error; nothing that steers a terminal."""
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert not {"\x1b", "\r", "\0"} & {*out, *err}
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), err
    if code:
        assert out == ""
        assert err.splitlines()[-1] == errors[0]
        assert len(errors[0]) < 1500


def means_a_budget(text: str) -> bool:
    """Whether a text is a budget, by other means than the command line's."""
    fields = [part.partition("=") for part in text.split(",")]
    names = [name for name, _, _ in fields]
    if len(set(names)) < len(names):
        return False
    for name, _, value in fields:
        try:
            number = json.loads(value, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return False
        if type(number) not in (int, float) or (type(number) is float and name == "operators"):
            return False
        if not (name in QUANTITIES and 0 < number <= 1) and not (name == "operators" and number >= 1):
            return False
    return True


BUDGETS = st.one_of(words_like("latency=0.65", "parameters=0.8,macs=0.9", "operators=2"), st.sampled_from(TYPOS))


@sizes(8, 300)
def test_budgets(run: Run, places: Callable[[], Place], inputs: int) -> None:
    def trial(text: str) -> Trial:
        return Trial(("select", "--run", "run", f"--budget={text}"), means_nothing=not means_a_budget(text))

    campaign(run, places, inputs, BUDGETS.map(trial))


ARGUMENTS = ("batch_size", "generator", "eta", "num_inference_steps", "output_type", "return_dict")


@sizes(20, 100)
def test_arguments_of_the_pipeline(run: Run, places: Callable[[], Place], inputs: int) -> None:
    texts = words_like("eta=0.5", "eta=[[1]]", "etaa=1", "prompt=a cat", "image=data/0.png", "height=64", "steps=3")

    def trial(text: str) -> Trial:
        words = ("score", "model", "--run", "new", *SHORT, "--budget", "macs=0.9", f"--pipeline-arg={text}")
        return Trial((*words, "--dry-run"), means_nothing=text.partition("=")[0] not in ("eta", "output_type"))

    campaign(run, places, inputs, texts.map(trial))


@sizes(8, 300)
def test_numbers_of_options(run: Run, places: Callable[[], Place], inputs: int) -> None:
    options: list[tuple[str, ...]] = [
        ("score", "model", "--run", "new", "--dry-run", name) for name in ("--samples", "--steps", "--seed")
    ]
    options += [
        ("score", "model", "--run", "new", "--dry-run", "--batch-size"),
        ("bench", "m", "--dry-run", "--rounds"),
    ]
    options += [("score", "model", "--run", "new", "--dry-run", "--tflops")]
    options += [(command, "--run", "run", "--dry-run", "--samples") for command in ("finetune", "evaluate")]
    names = [
        f"--{name.replace('_', '-')}" for name, field in Training.model_fields.items() if field.annotation is not bool
    ]
    options += [("finetune", "--run", "run", "--dry-run", name) for name in names if name != "--guidance-interval"]
    texts = st.one_of(st.sampled_from(NUMBERS), words_like("3", "0.001"))

    def trial(option: Sequence[str], text: str) -> Trial:
        *words, name = option
        return Trial((*words, f"{name}={text}"), means_nothing=text in ("nan", "inf", "true", "", "1,5", "0x10", "-1"))

    trials = st.builds(trial, st.sampled_from(options), texts)
    campaign(run, places, inputs, trials)


@sizes(4, 70)
def test_words_in_any_place(run: Run, places: Callable[[], Place], inputs: int) -> None:
    """Names of models, run folders, components, patterns and devices."""
    word = words_like("model", "zoo:satellite", "run", "unet", "mid_block*", "cpu", "m2/[/]", "\x1b[31mx", "x" * 3000)
    lines = [
        ("operators", "{}"),
        ("operators", "model", "--component", "{}"),
        ("operators", "model", "--ignore", "{}"),
        ("operators", "model", "--targets={}"),
        ("bench", "{}", "model", "--steps=1", "--rounds=2", "--dry-run"),
        ("score", "{}", "--run", "new", "--dry-run"),
        ("run", "{}", "--run", "run/new", "--budget", "parameters=0.95", "--targets", "mid_block*", *SHORT),
        ("run", "model", "--run", "run/x{}", "--budget", "parameters=0.95", "--targets", "mid_block*", *SHORT),
        ("select", "--run", "run/{}", "--budget", "macs=0.9"),
        ("prune", "--run", "run/{}"),
        ("prune", "--run", "run", "--device={}"),
        ("prune", "--run", "run", "--dtype={}"),
        ("evaluate", "--run", "run/{}", "--dry-run"),
        ("evaluate", "--run", "run", "--data", "data", "--features={}"),
        ("evaluate", "--run", "run", "--clip={}"),
        ("finetune", "--run", "run", "--data", "{}", *TRAIN),
        ("finetune", "--run", "run", "--prompts", "{}", *TRAIN),
        ("finetune", "--run", "run", "--config", "{}", "--dry-run"),
        ("finetune", "--run", "run", "--report-to={}", *TRAIN),
        ("recipe", "{}"),
        ("recipe", "r.yaml", "--only", "{}"),
        ("demo", "--run", "{}", "--dry-run"),
        ("{}",),
        ("operators", "model", "{}"),
        ("prune", "--run", "run", "--{}"),
    ]

    def trial(line: Sequence[str], text: str) -> Trial:
        return Trial(tuple(part.replace("{}", text) for part in line))

    trials = st.builds(trial, st.sampled_from(lines), word)
    campaign(run, places, inputs, trials)


@sizes(8, 80)
def test_files_of_a_run(run: Run, places: Callable[[], Place], template: Place, inputs: int) -> None:
    """The store, the plan and the pruned pipeline."""
    index = json.loads((template / "run/pruned/model_index.json").read_bytes())
    configuration = json.loads((template / "run/pruned/unet/config.json").read_bytes())
    plan = json.loads((template / "run/plan.json").read_bytes())
    store = damaged((template / "run/run.sqlite").read_bytes())
    later = (("evaluate", "--run", "run", "--samples", "5"), ("bench", "run/pruned", "--steps=1", "--rounds=2"))
    kinds: list[tuple[str, Strategy[bytes], tuple[tuple[str, ...], ...]]] = [
        ("run/run.sqlite", store, (("select", "--run", "run", "--budget", "macs=0.9"), ("prune", "--run", "run"))),
        (
            "run/run.sqlite",
            store,
            (("finetune", "--run", "run", "--dry-run"), ("evaluate", "--run", "run", "--dry-run")),
        ),
        ("run/run.sqlite", store, (("score", "model", "--run", "run", "--samples=2", "--steps=2", "--exhaustive"),)),
        ("run/plan.json", json_files(plan), (("prune", "--run", "run"), ("prune", "--run", "run", "--dry-run"))),
        ("run/pruned/model_index.json", json_files(index), later),
        ("run/pruned/unet/config.json", json_files(configuration), later),
        ("model/unet/config.json", json_files(configuration), (("operators", "model"), ("prune", "--run", "run"))),
        ("model/model_index.json", json_files(index), (("operators", "model"), ("prune", "--run", "run"))),
    ]
    trials = st.one_of(
        [
            st.builds(lambda line, data, name=name: Trial(line, ((name, data),)), st.sampled_from(lines), contents)
            for name, contents, lines in kinds
        ]
    )
    campaign(run, places, inputs, trials)


@sizes(4, 20)
def test_data_to_learn_from(run: Run, places: Callable[[], Place], template: Place, inputs: int) -> None:
    words = ("finetune", "--run", "run", "--data", "data", *TRAIN)
    pictures = [path.name for path in sorted((template / "data").iterdir())]
    kinds = [(f"data/{name}", damaged((template / "data" / name).read_bytes())) for name in pictures]
    kinds += [("data/metadata.csv", damaged(CSV)), ("data/metadata.jsonl", damaged(b'{"file_name": "0.png"}\n'))]
    trials = st.one_of(
        [st.builds(lambda data, name=name: Trial(words, ((name, data),)), contents) for name, contents in kinds]
    )
    campaign(run, places, inputs, trials)


@sizes(10, 100)
def test_recipes(run: Run, places: Callable[[], Place], inputs: int) -> None:
    document = {
        "model": "model",
        "run": "run/recipe",
        "budget": {"parameters": 0.8},
        "probe": {"samples": 2, "steps": 1, "call": {"eta": 0.5}},
        "training": {"max_train_steps": 1, "train_batch_size": 2},
        "examples": 2,
        "evaluation": {"samples": 5},
    }
    contents = yaml_files(document)
    lines = st.sampled_from([("recipe", "r.yaml", "--dry-run"), ("recipe", "r.yaml", "--dry-run", "--json")])
    typed = st.builds(lambda name: yaml.safe_dump({**document, f"{name}s": 1}).encode(), st.sampled_from([*document]))
    trials = st.one_of(
        st.builds(lambda line, data: Trial(line, (("r.yaml", data),)), lines, contents),
        st.builds(lambda line, data: Trial(line, (("r.yaml", data),), means_nothing=True), lines, typed),
    )
    campaign(run, places, inputs, trials)


@sizes(10, 100)
def test_files_of_settings_and_prompts(run: Run, places: Callable[[], Place], inputs: int) -> None:
    document = {"max_train_steps": 3, "learning_rate": 1e-3, "early_stopping_patience": None, "snr_weighting": True}
    setting = ("finetune", "--run", "run", "--dry-run", "--config", "t.yaml")
    prompted = ("score", "model", "--run", "new", "--dry-run", "--prompts", "p.txt")  # the model takes none
    trials = st.one_of(
        st.builds(lambda data: Trial(setting, (("t.yaml", data),)), yaml_files(document)),
        st.builds(
            lambda name, value: Trial(
                setting, (("t.yaml", yaml.safe_dump({name: value}).encode()),), means_nothing=True
            ),
            st.sampled_from(["steps", "max_train_step", "Seed", "learning-rate"]),
            JUNK,
        ),
        st.builds(lambda data: Trial(prompted, (("p.txt", data),), means_nothing=True), damaged(b"a cat\na dog\n")),
    )
    campaign(run, places, inputs, trials)
