"""Perdure's processes."""

from benchmarks.kit import main

from .subject import Perdure

main(Perdure())
