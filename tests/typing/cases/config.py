"""Settings, their copies and their durations."""

from datetime import timedelta
from typing import reveal_type

from apalis_pgmq import Config

config = Config(
    "emails",
    visibility_timeout=timedelta(seconds=120),
    poll_interval=0.5,
    max_retries=3,
    on_success="archive",
)
reveal_type(config.with_visibility_timeout(120).with_poll_interval(0.5).with_max_retries(3))  # R: Config
reveal_type(config.visibility_timeout)  # R: timedelta
reveal_type(config.dead_letter_queue)  # R: str
Config.of("emails").with_on_success("delete")

Config("emails", visibility_timeout="30s")  # E: arg-type
Config("emails", max_retries=2.5)  # E: arg-type
Config("emails", on_success="keep")  # E: arg-type
Config("emails", retries=3)  # E: call-arg
Config(7)  # E: arg-type
Config("emails", 30)  # E: call-arg
Config()  # E: call-arg
config.max_retries = 3  # E: misc
config.with_on_success("keep")  # E: arg-type
