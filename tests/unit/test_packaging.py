"""What is built is our modules and nothing else; what the sandbox shares is the vocabulary."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from perdure.workers.runner import PURE, WORKFLOWS

ROOT = Path(__file__).parents[2]
ROOMS = ("activities", "starter", "workers", "workflows")


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def modules() -> set[str]:
    """Our modules, as the wheel names them."""
    own = {
        f"perdure/{path.relative_to(ROOT / 'perdure')}"
        for path in (ROOT / "perdure").rglob("*.py")
        if path.relative_to(ROOT / "perdure").parts[0] not in ROOMS
    }
    return own | {
        f"perdure/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }


def test_built_packages_match_disk() -> None:
    """The packages that are built are those on disk."""
    room_folders = [path.parent for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    own_folders = [path.parent for path in (ROOT / "perdure").rglob("*/__init__.py")]
    folders = {".".join(["perdure", *folder.relative_to(ROOT).parts]) for folder in room_folders}
    own = [folder for folder in own_folders if not folder.is_symlink()]
    folders |= {".".join(folder.relative_to(ROOT).parts) for folder in own}
    table = project()
    assert set(table["packages"]) == {"perdure", *folders}
    assert table["package-dir"] == {"": "src"}


def test_links_lead_to_rooms() -> None:
    """The links that are built, and that type checkers read, lead to the package and its rooms."""
    assert (ROOT / "src" / "perdure").readlink() == Path("..") / "perdure"
    for room in ROOMS:
        assert (ROOT / "perdure" / room).readlink() == Path("..") / room


@pytest.mark.parametrize("place", ["beside a clone", "in a clone", "in a project with folders of our names"])
def test_it_loads_from_anywhere(place: str, tmp_path: Path) -> None:
    """No folder that Python sees first stands for the installed package, and none of ours for a user's own."""
    match place:
        case "beside a clone":
            (tmp_path / "perdure").symlink_to(ROOT, target_is_directory=True)
            program = "from perdure import Agent"
        case "in a clone":
            program = "from perdure import Agent"
        case _:
            for name in ("workflows", "tests"):
                (tmp_path / name).mkdir()
                (tmp_path / name / "mine.py").touch()
            program = "from perdure import Agent\nimport tests.mine, workflows.mine"
    folder = ROOT if place == "in a clone" else tmp_path
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, env=environment)


def test_only_user_code_binding_is_sandboxed() -> None:
    """Only the file that binds user code stays in the sandbox."""
    passed = (*PURE, *WORKFLOWS)
    checked = {name for name in modules() if not name.endswith("__init__.py")}
    dotted = {name.removesuffix(".py").replace("/", ".") for name in checked}
    outside = {name for name in dotted if not any(f"{name}.".startswith(f"{one}.") for one in passed)}
    helpers_of_tests = {name for name in outside if name.startswith("perdure.testing.")}
    assert outside - helpers_of_tests == {"perdure.__main__", "perdure.workflows.user_code"}


def test_strict_sandbox_passes_only_engine() -> None:
    """The strict sandbox passes nothing of the workflows but the engine."""
    assert [name for name in PURE if name.startswith("perdure.workflows")] == ["perdure.workflows.engine"]


def imports(path: Path) -> set[str]:
    """What a file imports of `perdure.starter`, in type-checking blocks and functions too."""
    here = ["perdure", *path.relative_to(ROOT).with_suffix("").parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                base = ".".join(
                    [*here[: -node.level], node.module or ""] if node.level else [node.module or ""]
                )
                names |= {base.strip("."), *(f"{base.strip('.')}.{alias.name}" for alias in node.names)}
            case _:
                pass
    return names


def test_starter_has_no_circle_of_imports() -> None:
    """Each file can be read before the files that use it; `graphlib` raises CycleError otherwise."""
    files = {
        f"perdure.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}": imports(path)
        for path in (ROOT / "starter").rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {name: names & set(files) for name, names in files.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(files) > 20


def test_wheel_holds_only_our_files(tmp_path: Path) -> None:
    """A wheel has our modules and data, and nothing else."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes() if (ROOT / name).exists() else b"x\n")
    for folder in ("perdure", *ROOMS, "src", "tests"):
        shutil.copytree(
            ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--quiet",
            "--wheel-dir",
            str(tmp_path),
            str(source),
        ],
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    shapes = {str(path.relative_to(ROOT)) for path in (ROOT / "perdure" / "providers").rglob("*.json")}
    assert names == modules() | {"perdure/prices.json", "perdure/py.typed"} | shapes
    assert shared_modules(wheel, tmp_path / "installed") == [sorted(PURE), sorted(WORKFLOWS)]


def shared_modules(wheel: Path, folder: Path) -> Any:
    """The modules that the sandbox shares when our package is imported from the wheel, not from here."""
    zipfile.ZipFile(wheel).extractall(folder)
    program = (
        "import json, perdure.workers.runner as runner\n"
        "print(json.dumps([runner.__file__, sorted(runner.PURE), sorted(runner.WORKFLOWS)]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    file, *shared = json.loads(finished.stdout)
    assert file == str(folder / "perdure/workers/runner.py")
    return shared
