"""The command ``apalis-pgmq``: a demonstration, a measurement, workers as processes, and the setup of queues.

Exit codes:
    0: all went well; for ``run`` also a clean stop after a signal.
    1: it failed, and said so: the database refused or did not answer, workers failed, a check did not hold.
    2: it was called wrongly: an unknown option, or a target that is not there or not a worker.
    130: interrupted from the keyboard before it had come to its end.
"""

from ._app import main

__all__ = ["main"]
