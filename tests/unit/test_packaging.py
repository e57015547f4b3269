"""What is built is our modules and nothing else; what the sandbox shares is the vocabulary."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from perdure.workers.runner import PURE, SHELLS

ROOT = Path(__file__).parents[2]
ROOMS = ("activities", "starter", "workers", "workflows")


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def modules() -> set[str]:
    """Our modules, as the wheel names them."""
    own = {f"perdure/{path.name}" for path in (ROOT / "perdure").glob("*.py")}
    return own | {
        f"perdure/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")
    }


def test_the_packages_that_are_built_are_those_on_disk() -> None:
    folders = {
        ".".join(["perdure", *path.parent.relative_to(ROOT).parts])
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    table = project()
    assert set(table["packages"]) == {"perdure", *folders}
    assert table["package-dir"] == {"perdure": "perdure", **{f"perdure.{room}": room for room in ROOMS}}


def test_the_links_for_type_checkers_lead_to_the_rooms() -> None:
    for room in ROOMS:
        assert (ROOT / "perdure" / room).readlink() == Path("..") / room


def test_the_sandbox_shares_our_files_but_the_one_that_binds_what_users_bring() -> None:
    vocabulary = {f"perdure.{path.stem}" for path in (ROOT / "perdure").glob("*.py")}
    apart = {"perdure.__init__", "perdure.__main__", "perdure.testing"}
    rooms = {f"perdure.{room}" for room in ROOMS} - {"perdure.workflows"}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    pure = [set(one["source_modules"]) for one in contracts if one["name"].startswith("What decides")]
    assert len(pure) == 2
    assert pure[0] == pure[1]
    assert set(PURE) == (vocabulary - apart) | rooms | pure[0]
    files = {f"perdure.workflows.{path.stem}" for path in (ROOT / "workflows").glob("*.py")}
    assert set(SHELLS) == files - pure[0] - {"perdure.workflows.__init__", "perdure.workflows.code"}
    assert not any("perdure.workflows.code".startswith(name) for name in (*PURE, *SHELLS))


def test_a_wheel_holds_our_modules_and_data_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes() if (ROOT / name).exists() else b"x\n")
    for folder in ("perdure", *ROOMS, "tests"):
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
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == modules() | {"perdure/prices.json", "perdure/py.typed"}
