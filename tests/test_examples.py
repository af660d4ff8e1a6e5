"""The notebooks are executed, and what they call exists."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from diffusers import DiffusionPipeline

import ldpruner
from tests.families import FAMILIES
from tests.test_docs import SMALLER, STAND_INS, anchors

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 600_000  # bytes
NOT_EXECUTED = "gpu"
PLACE = re.compile(r"(?<![\w./<:-])(?:/[\w.-]+){2,}|[A-Z]:\\")  # an absolute path
EMBEDDED = re.compile(r"data:[\w/]+;base64,[\w+/=]+")
SHOWING = re.compile(r"^%%|^\s*(?:print|display|make_image_grid)\(", re.MULTILINE)
ADDRESS = re.compile(r"https?://\S+|0x[0-9a-f]{8,}")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script that executes notebooks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("execute")
    sys.modules.pop("execute")


def cells(path: Path) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_executed(cell: Any) -> bool:
    return NOT_EXECUTED not in cell.metadata.get("tags", [])


def texts(cell: Any) -> str:
    """All that a reader sees of the outputs, without pictures and sounds."""
    shown = [output.get("text", "") for output in cell.outputs]
    shown += [text for output in cell.outputs for kind, text in output.get("data", {}).items() if "text/" in kind]
    return EMBEDDED.sub("", "\n".join(map(str, shown)))


@each_notebook
def test_a_notebook_is_small_and_plain(path: Path) -> None:
    metadata = nbformat.read(path, as_version=4).metadata
    assert path.stat().st_size <= LARGEST
    assert metadata.kernelspec.name == "python3"
    assert set(metadata) == {"kernelspec", "language_info"}
    assert set(metadata.language_info) == {"name"}


@each_notebook
def test_every_cell_was_executed_in_order_but_those_for_a_gpu(path: Path) -> None:
    executed = [cell for cell in cells(path) if is_executed(cell)]
    assert [cell.execution_count for cell in executed] == list(range(1, 1 + len(executed)))
    assert not [cell.source for cell in cells(path) if not is_executed(cell) and cell.outputs]
    assert not [cell.source for cell in executed if SHOWING.search(cell.source) and not cell.outputs]


@each_notebook
def test_outputs_name_no_error_no_warning_and_no_place_of_a_machine(path: Path) -> None:
    for cell in cells(path):
        assert not [output for output in cell.outputs if output.output_type == "error"]
        assert "Warning" not in texts(cell)
        assert not PLACE.findall(ADDRESS.sub("", texts(cell)))
        assert not ADDRESS.findall(texts(cell))
        is_log = "log" in cell.metadata.get("tags", [])
        assert is_log or not [output for output in cell.outputs if output.get("name") == "stderr"]


def test_a_path_of_a_machine_is_noticed() -> None:
    assert PLACE.findall("in /home/me/runs") == ["/home/me/runs"]
    assert not PLACE.findall("../tests/runs runs/satellite </div> image/png 1 / 2")


@each_notebook
def test_a_notebook_uses_public_names_and_arguments_that_exist(path: Path) -> None:
    for cell in cells(path):
        if cell.source.startswith("%%"):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("ldpruner"), ast.unparse(node)
                module = importlib.import_module(node.module or "")
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
            elif isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("ldpruner.")]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ldpruner."):
                check_call(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ldpruner":
                assert node.attr in ldpruner.__all__


def check_call(call: ast.Call) -> None:
    """Raises TypeError if a function of ldpruner takes no such arguments."""
    function: Any = ldpruner
    for name in ast.unparse(call.func).split(".")[1:]:
        function = getattr(function, name)
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    inspect.signature(function).bind(*call.args, **keywords)


def test_a_wrong_argument_is_noticed() -> None:
    (statement,) = ast.parse("ldpruner.Probe(sample=3)").body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    with pytest.raises(TypeError, match="sample"):
        check_call(statement.value)


@each_notebook
def test_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]*))?\)", "\n".join(sources)):
        assert (FOLDER / link).exists(), link
        assert not anchor or anchor in anchors(FOLDER / link), f"{link}#{anchor}"


def test_every_notebook_is_in_the_table() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert not [path.name for path in NOTEBOOKS if f"({path.name})" not in table]


def test_what_changes_from_run_to_run_is_cleaned(execute: ModuleType) -> None:
    outputs = [nbformat.v4.new_output("stream", name="stderr", text="torchao is missing\n")]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"execution": {"iopub.status.idle": "now"}})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    execute.clean(notebook, "some")
    assert notebook.cells[0] == {**cell, "id": "cell-0", "metadata": {}, "outputs": []}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_a_cell_that_warns_is_an_error_unless_its_text_explains_the_log(execute: ModuleType) -> None:
    outputs = [nbformat.v4.new_output("stream", name="stderr", text="this is old\n")]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs)
    with pytest.raises(ValueError, match="cell 0 warns: this is old"):
        execute.clean(nbformat.v4.new_notebook(cells=[cell]), "some")
    cell.metadata["tags"] = ["log"]
    execute.clean(nbformat.v4.new_notebook(cells=[cell]), "some")
    assert cell.outputs == outputs


@pytest.mark.extensive
@pytest.mark.timeout(900)
@each_notebook
def test_a_notebook_runs(path: Path, execute: ModuleType) -> None:
    notebook = execute.execute(path)
    assert [cell.source for cell in notebook.cells] == [
        cell.source for cell in nbformat.read(path, as_version=4).cells
    ]


@pytest.mark.extensive
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_cells_for_a_gpu_run_on_a_small_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_folder = DiffusionPipeline.from_pretrained

    def stand_in(name: Any, **options: Any) -> DiffusionPipeline:
        return FAMILIES[STAND_INS[name]].pipeline() if name in STAND_INS else open_folder(name, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", stand_in)
    for method in ("to", "enable_model_cpu_offload"):
        monkeypatch.setattr(DiffusionPipeline, method, lambda self, *_: self)
    for path in NOTEBOOKS:
        names: dict[str, Any] = {}
        for cell in cells(path):
            if not is_executed(cell):
                exec(compile(smaller(cell.source), path.name, "exec"), names)
    assert (tmp_path / "runs" / "sdxl" / "recovered").is_dir()


def smaller(source: str) -> str:
    """Code with the sizes of the small pipelines."""
    for size, replacement in SMALLER:
        source = re.sub(size, replacement, source)
    return source
