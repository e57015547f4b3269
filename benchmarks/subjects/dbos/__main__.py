"""DBOS's processes."""

from benchmarks.kit import main

from .subject import Dbos

main(Dbos())
