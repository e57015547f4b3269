"""Processes of the Strands plugin's subject."""

from proofs.benchmarks.kit import main

from .subject import Strands

main(Strands())
