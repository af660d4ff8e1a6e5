"""Executes the notebooks of this folder with a fresh kernel, and keeps their outputs.

python examples/execute.py               all of them, in place
python examples/execute.py lora audio    these
python examples/execute.py --check       nothing is written; an error ends it
"""

import functools
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent
NOT_EXECUTED = "gpu"  # tag of cells that need a GPU or a download
LOGS = "log"  # tag of cells whose lines in the log the text explains
TIMEOUT = 600  # seconds for a cell
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # for `ldpruner`
    "COLUMNS": "100",  # of the tables of commands
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",  # a progress bar is a line for each step in a file
    "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, where ipywidgets are missing
}
# Lines of other libraries: of packages that only the tests need, and of every LoRA that leaves the text encoder alone.
NOISE = re.compile(r"torchao|torch/utils/_pytree\.py|requires torchvision|No LoRA keys associated to CLIPTextModel")


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Notebooks; all if none is named.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False,
    jobs: Annotated[int, typer.Option(help="Notebooks at once, on one core each if there are several.", min=1)] = 1,
) -> None:
    """Execute notebooks in place, or check that they run."""
    named = [EXAMPLES / f"{name.removesuffix('.ipynb')}.ipynb" for name in names or ()]
    paths = named or sorted(EXAMPLES.glob("*.ipynb"))
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs) as pool:
        for line in pool.map(functools.partial(_executed, check=check), paths):
            typer.echo(line)


def _executed(path: Path, *, check: bool) -> str:
    started = time.perf_counter()
    notebook = execute(path)
    if not check:
        nbformat.write(notebook, path)
    return f"{path.name}: {time.perf_counter() - started:.0f} s"


def execute(path: Path) -> Any:
    """The notebook with the outputs of a fresh kernel, in a temporary folder that looks like this repository.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
        ValueError: a cell warns.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, EXAMPLES.name)
        folder.mkdir()
        Path(temporary, "tests").symlink_to(EXAMPLES.parent / "tests")
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            skip_cells_with_tag=NOT_EXECUTED,
            coalesce_streams=True,
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
        client.execute(env={**os.environ, **ENVIRONMENT})
    clean(notebook, path.name)
    return notebook


def clean(notebook: Any, name: str) -> None:
    """Leaves out what changes from run to run, and what other libraries write about themselves.

    Raises:
        ValueError: a cell writes anything else to its error stream, and has no tag that expects it.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for place, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.id, cell.metadata = f"cell-{place}", {"tags": tags} if tags else {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in map(without_noise, cell.outputs) if output.get("text", True)]
        for output in cell.outputs:
            if output.get("name") == "stderr" and LOGS not in tags:
                raise ValueError(f"{name}, cell {place} warns: {output.text}")


def without_noise(output: Any) -> Any:
    """An output without the lines of other libraries."""
    if output.get("name") == "stderr":
        output.text = "".join(line for line in output.text.splitlines(keepends=True) if not NOISE.search(line))
    return output


if __name__ == "__main__":
    typer.run(main)
