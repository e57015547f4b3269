"""The LangGraph plugin's processes."""

from proofs.benchmarks.kit import main

from .subject import LangGraph

main(LangGraph())
