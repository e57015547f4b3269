"""Adapters that talk to a stub over loopback, as the providers' own tests have them."""

from tests.unit.providers.conftest import own_environment, pytest_generate_tests, server, wire

__all__ = ["own_environment", "pytest_generate_tests", "server", "wire"]
