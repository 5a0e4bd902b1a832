"""The shape of the house, and proof that each guard of it can fail.

In: the package's source files and pyproject.toml. The import contracts are run on the package as
it is, then on a temporary copy with one breach planted, which the contract must name. Nothing here
knows what the modules do.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "memlong_agent"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350
FRONT_DOOR = {"memlong_agent"} | {
    f"memlong_agent.{room}" for room in ("config", "errors", "memlong", "records")
}
CLI = ("cli", "cli.py")
HEAVY = ("torch", "transformers", "pydantic", "sqlalchemy", "faiss", "llguidance")
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

# contract, room that gets the line, the line, what the report must name
BREACHES = [
    ("floors", "errors", "import memlong_agent.kv", "errors -> memlong_agent.kv"),
    ("floors", "storage", "import memlong_agent.model", "storage -> memlong_agent.model"),
    ("floors", "chunking", "import memlong_agent.storage", "chunking -> memlong_agent.storage"),
    ("floors", "attic", "", "- memlong_agent.attic"),  # an unlisted room
    ("sqlalchemy", "kv", "import sqlalchemy.orm", "kv -> sqlalchemy"),
    ("sqlalchemy", "attic", "import sqlalchemy", "attic -> sqlalchemy"),  # new rooms too
    ("transformers", "storage", "import transformers", "storage -> transformers"),
    ("transformers", "kv", "def f():\n    import transformers", "kv -> transformers"),
    ("faiss", "storage", "import faiss", "storage -> faiss"),
    ("llguidance", "memlong", "import llguidance", "memlong -> llguidance"),
]


def run(*command: str, cwd: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    # A wide terminal keeps the report's module names from being wrapped in the middle.
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the contracts on the package in `folder`, which `-c` puts first on the path."""
    return run("-c", LINT_IMPORTS, "--no-cache", *options, cwd=folder)


def plant(folder: Path, room: str, line: str) -> None:
    """Append `line` to a module of the copy, made when absent."""
    base = folder / "memlong_agent" / room
    module = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    with module.open("a") as file:
        file.write(f"\n{line}\n")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with pyproject.toml and a copy of the package's Python files."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return tmp_path


def test_every_import_contract_is_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("contract", "room", "line", "named"), BREACHES)
def test_a_planted_breach_breaks_its_contract(
    copy: Path, contract: str, room: str, line: str, named: str
) -> None:
    plant(copy, room, line)
    done = lint_imports(copy, "--contract", contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Contracts: 0 kept, 1 broken." in done.stdout
    assert named in done.stdout


def test_every_contract_has_a_planted_breach() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {contract["id"] for contract in settings["tool"]["importlinter"]["contracts"]}
    assert contracts == {breach[0] for breach in BREACHES}


@pytest.mark.parametrize(
    "framework", ["langchain", "langchain_core", "langchain_memlong", "langgraph", "llama_index"]
)
def test_ruff_refuses_an_agent_framework_in_the_package(framework: str) -> None:
    source = f"from {framework} import x\n"
    options = ("check", "--no-cache", "--stdin-filename", "memlong_agent/attic.py", "-")
    done = run("-m", "ruff", *options, cwd=ROOT, text=source)
    assert done.returncode == 1, done.stderr
    assert "TID251" in done.stdout


def beyond_the_door(source: str) -> list[str]:
    """Rooms of the package that a source imports and that are not for adapters."""
    rooms = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            rooms.append(node.module or "")
        elif isinstance(node, ast.Import):
            rooms += [alias.name for alias in node.names]
    return [room for room in rooms if room.startswith("memlong_agent") and room not in FRONT_DOOR]


def test_adapters_use_the_front_door() -> None:
    planted = "import memlong_agent.engine\nfrom memlong_agent.memlong.stream import Stream\n"
    assert len(beyond_the_door(planted)) == 2
    adapters = sorted((ROOT / "integrations").rglob("*.py"))
    found = {str(path.relative_to(ROOT)): beyond_the_door(path.read_text()) for path in adapters}
    assert len(found) > 10
    assert {name: rooms for name, rooms in found.items() if rooms} == {}


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps(list(sys.modules)))"
    done = run("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert "torch" in loaded_by("import memlong_agent.kv")  # the probe can see a heavy import
    loaded = loaded_by("import memlong_agent")
    assert "memlong_agent" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_streams_and_their_threads_load_no_torch() -> None:
    """An event loop imports them, and torch takes seconds."""
    loaded = loaded_by("from memlong_agent.memlong import Stream, background, shared")
    assert loaded.isdisjoint({"torch", "transformers", "sqlalchemy", "faiss", "llguidance"})


def too_long(paths: Sequence[Path]) -> dict[Path, int]:
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    return {path: count for path, count in lines.items() if count > MAX_LINES}


def test_no_source_file_is_longer_than_the_wall(tmp_path: Path) -> None:
    planted = tmp_path / "long.py"
    planted.write_text("\n" * (MAX_LINES + 1))
    assert too_long([planted]) == {planted: MAX_LINES + 1}
    assert too_long([*SOURCES, *(ROOT / "integrations").rglob("*.py")]) == {}


def prints(source: str) -> list[int]:
    """Line numbers of calls to the builtin `print`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_only_the_command_line_prints() -> None:
    assert prints("x = 1\nprint(x)\n") == [2]
    floors = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] not in CLI]
    found = {str(path.relative_to(ROOT)): prints(path.read_text()) for path in floors}
    assert {name: lines for name, lines in found.items() if lines} == {}
