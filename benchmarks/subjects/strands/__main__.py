"""The Strands plugin's processes."""

from benchmarks.kit import main

from .subject import Strands

main(Strands())
