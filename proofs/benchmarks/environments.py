"""Virtual environments of the subjects, one each because their dependencies conflict."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / ".venvs"
_SUBJECTS = Path(__file__).resolve().parent / "subjects"
_OURS = ("perdure",)
"""Subjects that run in the environment of the benchmarks themselves."""


def make(subject: str, folder: Path = FOLDER) -> None:
    """Create a subject's environment unless it exists with these requirements."""
    requirements = _SUBJECTS / subject / "requirements.txt"
    if subject in _OURS:
        return
    home = folder / subject
    stamp = home / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    install = [home / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements]
    subprocess.run(install, check=True)
    stamp.write_text(requirements.read_text())
