"""The notebooks: each runs from top to bottom, as committed, and holds no output."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_seven() -> None:
    assert [file.name[:3] for file in NOTEBOOKS] == [f"0{number}_" for number in range(1, 8)]
    readme = (FOLDER / "README.md").read_text()
    assert all(f"({file.name})" in readme for file in NOTEBOOKS)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stripped_and_says_something_that_it_checks(file: Path) -> None:
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    assert notebook.cells[0].source.startswith(f"# {file.stem[:2]} ")
    nodes = [node for source in code(notebook) for node in ast.walk(ast.parse(source))]
    assert any(isinstance(node, ast.Assert) for node in nodes), "the last word is checked"


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{FOLDER.parent}:{FOLDER.parent / 'kernels'}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(file, 4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "stream" and output.name == "stdout"]
