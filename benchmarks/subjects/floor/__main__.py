"""The floor's processes."""

from benchmarks.kit import main

from .subject import Floor

main(Floor())
