"""Pydantic AI's processes."""

from proofs.benchmarks.kit import main

from .subject import PydanticAI

main(PydanticAI())
