"""DBOS's processes."""

from proofs.benchmarks.kit import main

from .subject import Dbos

main(Dbos())
