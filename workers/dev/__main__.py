"""`python -m perdure.workers.dev FILE...`."""

from .supervisor import main

main()
