"""The OpenAI Agents plugin's processes."""

from benchmarks.kit import main

from .subject import OpenAIAgents

main(OpenAIAgents())
