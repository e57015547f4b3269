"""The Strands plugin's processes."""

from proofs.benchmarks.kit import main

from .subject import Strands

main(Strands())
