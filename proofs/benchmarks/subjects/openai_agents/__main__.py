"""Processes of the OpenAI Agents plugin's subject."""

from proofs.benchmarks.kit import main

from .subject import OpenAIAgents

main(OpenAIAgents())
