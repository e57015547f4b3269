"""Environments of the task set, of the peers, and of the library that fakes clocks."""

import subprocess
import sys
from pathlib import Path

from .catalogue import Catalogue, load

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".venvs"
ROOT = HERE.parents[1]
SET = "bfcl"


def ensure_environment(name: str, requirements: Path, *more: str) -> Path:
    """Create the environment unless it exists with these requirements; return its interpreter."""
    home = FOLDER / name
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == requirements.read_text()):
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", *more]
        subprocess.run([python, *install, "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return python


def bfcl_environment() -> tuple[Path, Path, Catalogue]:
    """Return the interpreter of the set's environment, the catalogue's file, and the catalogue."""
    python = ensure_environment(SET, HERE / "requirements.txt", "--no-deps")
    file = FOLDER / SET / "catalogue.json"
    # The catalogue is derived: it is written again when the code that derives it has changed.
    sources = (HERE / "tools" / "prepare.py", HERE / "tools" / "objects.py", HERE / "gold.py")
    if not file.exists() or any(source.stat().st_mtime > file.stat().st_mtime for source in sources):
        subprocess.run([python, "-m", "proofs.chaos.tools.prepare", file], cwd=ROOT, check=True)
    return python, file, load(file)


def peer_python(name: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return ensure_environment(name, HERE / "subjects" / name / "requirements.txt")


def faketime_library() -> Path:
    """Return libfaketime, which gives a process another wall clock when it is preloaded."""
    ensure_environment("clock", HERE / "requirements-clock.txt", "--no-deps")
    found = sorted((FOLDER / "clock").rglob("libfaketime.so.1"))
    if not found:
        raise FileNotFoundError("the package libfaketime brought no libfaketime.so.1: Linux only")
    return found[0]
