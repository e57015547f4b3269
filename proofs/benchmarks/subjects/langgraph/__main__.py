"""Processes of the LangGraph plugin's subject."""

from proofs.benchmarks.kit import main

from .subject import LangGraph

main(LangGraph())
