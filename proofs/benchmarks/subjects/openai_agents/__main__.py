"""The OpenAI Agents plugin's processes."""

from proofs.benchmarks.kit import main

from .subject import OpenAIAgents

main(OpenAIAgents())
