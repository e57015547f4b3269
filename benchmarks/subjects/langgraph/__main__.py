"""The LangGraph plugin's processes."""

from benchmarks.kit import main

from .subject import LangGraph

main(LangGraph())
