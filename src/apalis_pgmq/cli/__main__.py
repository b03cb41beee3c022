"""``python -m apalis_pgmq.cli``."""

from ._app import main

main()
