"""Command `perdure dev`, as `python -m perdure.workers.dev FILE...`."""

from .supervisor import main

main()
