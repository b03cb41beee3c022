"""What `apalis_pgmq` costs and how fast it is, against limits and peers measured in the same run.

``python -m benchmarks --list`` says what there is to measure.
"""
