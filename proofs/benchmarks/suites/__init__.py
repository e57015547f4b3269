"""Suites of the benchmarks: async functions that measure their subjects in turns and yield records."""
