"""What runs in processes of its own: `apalis_pgmq` itself, the limits it is held against, and senders."""
