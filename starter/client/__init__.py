"""Handles on runs, sessions and deployments. Above `watch/`, whose events the handles give."""
