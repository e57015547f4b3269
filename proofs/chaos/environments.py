"""The environments that are not ours: the set's, the peers', and the library that fakes clocks."""

import subprocess
import sys
from pathlib import Path

from .catalogue import Catalogue, load

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".venvs"
ROOT = HERE.parents[1]
SET = "bfcl"


def make(name: str, requirements: Path, *more: str) -> Path:
    """An environment with these requirements, made unless it is there; its interpreter."""
    home = FOLDER / name
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == requirements.read_text()):
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", *more]
        subprocess.run([python, *install, "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return python


def of_the_set() -> tuple[Path, Path, Catalogue]:
    """The interpreter of the set's environment, and the catalogue made there: its file, and read."""
    python = make(SET, HERE / "requirements.txt", "--no-deps")
    file = FOLDER / SET / "catalogue.json"
    sources = (HERE / "tools" / "prepare.py", HERE / "tools" / "objects.py", HERE / "gold.py")
    if not file.exists() or any(source.stat().st_mtime > file.stat().st_mtime for source in sources):
        subprocess.run([python, "-m", "proofs.chaos.tools.prepare", file], cwd=ROOT, check=True)
    return python, file, load(file)


def of_a_peer(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return make(name, HERE / "subjects" / name / "requirements.txt")


def faked_clock() -> Path:
    """The library that, loaded before all others, gives a process another wall clock."""
    make("clock", HERE / "requirements-clock.txt", "--no-deps")
    found = sorted((FOLDER / "clock").rglob("libfaketime.so.1"))
    if not found:
        raise FileNotFoundError("the package libfaketime brought no libfaketime.so.1: Linux only")
    return found[0]
