"""The floor's processes."""

from proofs.benchmarks.kit import main

from .subject import Floor

main(Floor())
