"""Others who do the same job; each module runs in a virtual environment of its own.

A module is a measured process with two phases. ``preload`` enqueues messages by the peer's own means. ``drain``
handles so many of them with a handler that does nothing, at the settings that were the fastest when they were
tried, with nothing made less durable than its default.
"""
