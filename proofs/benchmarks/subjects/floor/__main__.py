"""Processes of the floor's subject."""

from proofs.benchmarks.kit import main

from .subject import Floor

main(Floor())
