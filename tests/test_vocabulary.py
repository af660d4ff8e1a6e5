"""Names and documents use the field's words; those that this project once made up do not come back."""

import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("src", "tests", "benchmarks", "zoo")
# An example of what is forbidden must stand somewhere.
EXEMPT = {Path(__file__), ROOT / "CHANGELOG.md"}

# Words in an identifier, split at underscores and capitals: old -> new.
OLD_WORDS = {
    "also": "cascaded",
    "captions_found": "r_at_5",
    "damage": "cost",
    "damages": "costs",
    "doubt": "standard_error",
    "drawn": "sampled",
    "draws": "samples",
    "drew": "sampled",
    "effects": "output_mse",
    "enlist": "register",
    "firm": "selection_frequency",
    "held_out": "validation",
    "judge": "feature_network",
    "judged": "measured",
    "judging": "measuring",
    "latency_kept": "latency_ratio",
    "ledger": "store",
    "lesson": "distillation",
    "look": "proxy",
    "looked": "proxy",
    "looking": "inspect",
    "looks": "proxy",
    "moved_by": "latent_shift",
    "normalised": "normalize",
    "perfect_denoiser": "autoencoder_bound",
    "race": "adaptive scoring",
    "raced": "budgets",
    "races": "adaptive scoring",
    "racing": "adaptive scoring",
    "recovering": "recover",
    "rehearsed": "validate",
    "rival": "baseline",
    "rivals": "baselines",
    "stake": "priority",
    "stakes": "priorities",
    "steadied": "shrunk",
    "swept": "dead_modules",
    "told": "translate",
    "twin": "baseline",
    "twins": "baselines",
    "untouched": "baseline",
    "weightless": "meta",
}
# Whole identifiers, where the word is good elsewhere.
OLD_NAMES = {
    "Choice": "PlannedRemoval",
    "Conditions": "CallSignature",
    "Drawn": "SampleBatch",
    "Draws": "Probe",
    "Interruption": "StopPipeline",
    "Measured": "PipelineCost",
    "PromptMatch": "ClipScore",
    "Reuse": "CallCache",
    "Scoring": "ScoringRun",
    "Spread": "Percentiles",
    "USUAL": "DEFAULT_BUDGETS",
    "balanced": "snr_weighting",
    "check_every": "validation_steps",
    "checkpoint_every": "checkpointing_steps",
    "draw": "sample",
    "latent_score": "latent_shift",
    "led_above": "guidance_interval",
    "led_below": "guidance_interval",
    "nested": "normalize_shares",
    "once": "point_estimate",
    "put_": "load_weights_",
    "saves": "savings",
    "through": "source",
    "tracker": "report_to",
    "trackers": "report_to",
}
# A constant names its quantity.
OLD_CONSTANTS = {"MOST": "MAX_...", "FEWEST": "MIN_..."}
# Locals that say nothing.
EMPTY_NAMES = ("one", "found", "known", "given", "what", "them", "it")
# Files of the package.
OLD_MODULES = {
    "blocks": "scoring/store",
    "calls": "finetuning/conditioning",
    "drawing": "scoring/runner",
    "kinds": "operators/module_types",
    "observations": "evaluation/evaluate",
    "quality": "evaluation/metrics",
    "reuse": "pipelines/prompt_cache",
    "runs": "scoring/store",
}
# Keys of committed results.
OLD_KEYS = {
    "also": "cascaded",
    "captions_found": "r_at_5",
    "doubt": "standard_error",
    "firm": "selection_frequency",
    "held_out": "validation_losses",
    "kind": "module_type",
    "latent_score": "latent_shift",
    "moved_by": "latent_shift",
    "rival": "baseline",
    "through": "source",
    "untouched": "baseline",
}
# In documents, docstrings, comments and messages.
OLD_PROSE = {
    # words
    r"moved by": "latent shift",
    r"latency kept": "latency ratio",
    r"captions? found": "R@5",
    r"beside ld-pruner": "change against ours",
    r"(a|the|the model's|its|own) judges?": "feature network",
    r"perfect denoiser": "autoencoder bound",
    r"rivals?": "baselines",
    r"to the bit": "bit-identical",
    r"held[- ]out": "validation",
    r"hold (some|it|them) out": "validation",
    r"untouched": "baseline, original",
    r"twins?": "baseline",
    r"to draw": "sample",
    r"(is|are|was|were|be|been|being|not|has|have|latents|samples|all|those|what|has) drawn": "sampled",
    r"drawn (again|anew|at|for|from|in|on|once|one|with)": "sampled",
    r"(a|the|one|each|of|two|by) draws?": "sample",
    r"draws (what|once|twice|all|samples|latents)": "samples, generates",
    r"finds? noise": "epsilon-prediction",
    r"(is|are|was|were|being|not|learns|learning) led": "autoguided",
    r"led (away|astray|between|further|three times|for longer)": "autoguided",
    r"races?(?! condition)": "adaptive scoring",
    r"raced|racing": "adaptive scoring",
    r"(of|from|by|are|before) looks|looks (say|tell|and draws)|single-step looks?": "proxy",
    r"steadied": "shrunk",
    r"firm": "selection frequency",
    r"ledger": "run store",
    r"weightless": "meta device",
    # options
    r"--call": "--pipeline-arg",
    r"--batch": "--batch-size",
    r"--training": "an option for each setting",
    r"--tracker": "--report-to",
    r"--rules? lowest": "--rule greedy",
    # riddles
    r"errs|erred": "name the error",
    r"(is|are|was|were|be) told": "name it",
    r"what (is|was) (told|found|given|far off|known|asked|wanted|drawn|to be (had|found|won))": "name it",
    r"of a \w+, that its": "subject first",
    r"tells? of": "name it",
    r"the more the (less|fewer)": "state the weight",
    r"a least one": "lower bound",
    r"of which (more|each|no|every)": "subject first",
    r"lies? beyond": "autoguidance",
    r"by not listening": "say what collapses",
    r"do not get to": "say what is never reached",
}


def pattern(prose: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<![\w-])(?:{old})(?![\w-])" for old in prose), re.IGNORECASE)


PROSE = pattern(OLD_PROSE)
KEYS = re.compile(rf'"({"|".join(OLD_KEYS)})":')


def words_of(identifier: str) -> str:
    """An identifier in lower case, its words between underscores."""
    return f"_{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', identifier).lower()}_"


def old_identifiers(source: str) -> Iterator[tuple[int, str]]:
    """The identifiers of a Python file that are no longer used, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and is_old(token.string):
            yield token.start[0], token.string


def is_old(identifier: str) -> bool:
    words = words_of(identifier)
    is_constant = identifier.isupper() and any(f"_{old.lower()}_" in words for old in OLD_CONSTANTS)
    return identifier in OLD_NAMES or is_constant or any(f"_{old}_" in words for old in OLD_WORDS)


def old_locals(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in EMPTY_NAMES:
            yield token.start[0], token.string


def old_prose(text: str) -> Iterator[tuple[int, str]]:
    """The old phrases of a text with their lines, also across the end of a line; not in code."""
    prose = re.sub(r"^ *```.*?^ *```", lambda code: "\n" * code[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    flat = re.sub(r"\n[ #>]*", lambda end: " " * len(end[0]), prose)
    for match in PROSE.finditer(re.sub(r"(?<=\S) {2,}(?=\S)", lambda gap: " " + "\0" * (len(gap[0]) - 1), flat)):
        yield prose.count("\n", 0, match.start()) + 1, match[0].replace("\0", "")


def python_prose(source: str) -> str:
    """A Python file with everything but its comments and strings made blank."""
    lines = [[" "] * len(line) for line in source.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            for offset, part in enumerate(token.string.splitlines()):
                row, start = token.start[0] - 1 + offset, token.start[1] if not offset else 0
                lines[row][start : start + len(part)] = part
    return "\n".join("".join(line) for line in lines)


def python_files(area: str) -> list[Path]:
    return sorted(set((ROOT / area).rglob("*.py")) - EXEMPT)


def documents() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
    pages += [*(ROOT / "zoo").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    return sorted(set(pages) - EXEMPT)


def report(path: Path, offences: Iterator[tuple[int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {old}" for line, old in offences]


@pytest.mark.parametrize("area", AREAS)
def test_no_identifier_is_an_old_word(area: str) -> None:
    assert not [text for path in python_files(area) for text in report(path, old_identifiers(path.read_text("utf-8")))]


def test_a_local_names_its_content() -> None:
    assert not [text for path in python_files("src") for text in report(path, old_locals(path.read_text("utf-8")))]


@pytest.mark.parametrize("area", AREAS)
def test_docstrings_comments_and_messages_use_the_fields_words(area: str) -> None:
    files = [(path, python_prose(path.read_text("utf-8"))) for path in python_files(area)]
    assert not [text for path, prose in files for text in report(path, old_prose(prose))]


def test_documents_use_the_fields_words() -> None:
    assert not [text for path in documents() for text in report(path, old_prose(path.read_text("utf-8")))]


def test_results_have_the_new_keys() -> None:
    files = [*(ROOT / "benchmarks" / "results").rglob("*.json*"), *(ROOT / "zoo").rglob("*.json")]
    keys = {path: set(KEYS.findall(path.read_text("utf-8"))) for path in files}
    assert not {str(path.relative_to(ROOT)): found for path, found in keys.items() if found}


def test_no_file_has_an_old_name() -> None:
    paths = [path for area in (*AREAS, "docs") for path in (ROOT / area).rglob("*") if "__pycache__" not in path.parts]
    old = [path for path in paths if is_old(path.stem.replace("-", "_"))]
    old += [path for path in (ROOT / "src").rglob("*.py") if path.stem in OLD_MODULES]
    assert not [str(path.relative_to(ROOT)) for path in old]


@pytest.mark.parametrize(
    "text", ["It looks good.", "A race condition.", "Take a drawing.", "Confirm it.", "Interrupt"]
)
def test_ordinary_english_is_left_alone(text: str) -> None:
    assert not list(old_prose(text))


@pytest.mark.parametrize("text", ["equal to\nthe bit", "the held-out loss", "`--call height=512`", "moved by 3"])
def test_old_phrases_are_seen(text: str) -> None:
    assert list(old_prose(text))


def test_no_new_word_is_an_old_one() -> None:
    assert not [new for table in (OLD_WORDS, OLD_NAMES) for new in table.values() if is_old(new.replace(" ", "_"))]
