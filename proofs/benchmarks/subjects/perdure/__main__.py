"""Perdure's processes."""

from proofs.benchmarks.kit import main

from .subject import Perdure

main(Perdure())
