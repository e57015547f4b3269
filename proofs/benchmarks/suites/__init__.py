"""The suites: each an async function that measures its subjects in turns and yields records."""
