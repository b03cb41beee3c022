"""Others who do the same job; each module runs in a virtual environment of its own.

A module is a measured process with four phases. ``preload`` makes the tables and enqueues messages by the peer's
own means. ``drain`` handles so many of them with a handler that does nothing. ``send`` enqueues single messages at
random times, and ``listen`` handles those until told to stop. The settings are those that were the fastest when they
were tried, with nothing made less durable than its default.
"""
