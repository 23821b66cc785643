"""Imports go one way: pipelines → components → (inside bodies) graftflow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def nodes_of(path: Path, *, everywhere: bool) -> list[ast.AST]:
    """All nodes of a file, or those that run when it is imported."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    if everywhere:
        return nodes
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(child) for node in nodes if isinstance(node, functions) for child in ast.walk(node)}
    return [node for node in nodes if id(node) not in inside]


def imports_of(path: Path, *, everywhere: bool) -> Iterator[str]:
    for node in nodes_of(path, everywhere=everywhere):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files_of(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no Python files under {folder}"
    return found


@pytest.mark.parametrize("path", files_of("src"), ids=lambda p: p.name)
def test_library_knows_nothing_of_kfp(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path, everywhere=True)}
    assert not roots & {"kfp", "components", "pipelines"}


@pytest.mark.parametrize("path", files_of("src"), ids=lambda p: p.name)
def test_library_reads_no_environment_when_imported(path: Path) -> None:
    nodes = nodes_of(path, everywhere=False)
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not used & {"environ", "getenv"}


@pytest.mark.parametrize("path", files_of("components"), ids=lambda p: p.name)
def test_components_import_only_kfp_and_their_image(path: Path) -> None:
    assert set(imports_of(path, everywhere=False)) <= {"kfp", "components.image"}
    inside = set(imports_of(path, everywhere=True)) - {"kfp", "components.image"}
    assert all(name == "pathlib" or name.startswith("graftflow.") for name in inside)


@pytest.mark.parametrize("path", files_of("components"), ids=lambda p: p.name)
def test_component_files_are_thin(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    nodes = list(ast.walk(ast.parse(text)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions] in ([], [path.stem])
    assert not [node for node in nodes if isinstance(node, ast.While)]


@pytest.mark.parametrize("path", files_of("pipelines"), ids=lambda p: p.name)
def test_pipelines_load_the_library_only_when_they_run(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path, everywhere=False)}
    assert "graftflow" not in roots


@pytest.mark.parametrize(
    "module",
    [
        "graftflow.checks",
        "graftflow.serving.client",
        "graftflow.releases",
        "graftflow.serving.query",
        "graftflow.report",
        "pipelines.compile",
        "pipelines.run_local",
        "pipelines.run_step",
    ],
)
def test_import_does_not_load_tensorflow(module: str) -> None:
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
