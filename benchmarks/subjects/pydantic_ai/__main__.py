"""Pydantic AI's processes."""

from benchmarks.kit import main

from .subject import PydanticAI

main(PydanticAI())
