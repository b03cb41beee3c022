"""The public names, and that each says what it is for."""

import inspect

import pytest

import apalis_pgmq
from apalis_pgmq import codecs, core, delivery, memory, worker
from apalis_pgmq.worker import middleware

PUBLIC = [
    "AbortError",
    "ApalisError",
    "Attempt",
    "Backend",
    "BackendUnavailableError",
    "Batch",
    "Codec",
    "CodecError",
    "Compression",
    "Config",
    "ConfigError",
    "Consumer",
    "Data",
    "DeadLetter",
    "DeadLetterReason",
    "DeadLettered",
    "DecodeError",
    "Duration",
    "EncodeError",
    "Encryption",
    "Engaged",
    "Event",
    "EventListener",
    "Exponential",
    "Failed",
    "HandlerError",
    "Idle",
    "JsonCodec",
    "KeyRing",
    "LayeredCodec",
    "LeaseLost",
    "LeaseLostError",
    "MemoryBackend",
    "MessageEvent",
    "Middleware",
    "Monitor",
    "MsgspecCodec",
    "Next",
    "PgMqBackend",
    "PgMqContext",
    "PgMqError",
    "PgMqNotInstalledError",
    "PgMqPermissionError",
    "PgMqPool",
    "PgMqProducer",
    "PgMqQueueMissingError",
    "PgMqQueues",
    "PgMqTopic",
    "PgMqUnavailableError",
    "PgMqVersionError",
    "RetryAfterError",
    "Sink",
    "Stalled",
    "Started",
    "Stopped",
    "Succeeded",
    "Task",
    "TaskId",
    "Timeout",
    "Transaction",
    "Worker",
    "WorkerBuilder",
    "WorkerContext",
    "WorkerStats",
    "__version__",
]
PACKAGES = [apalis_pgmq, codecs, core, delivery, memory, worker, middleware]


def test_the_public_names() -> None:
    assert apalis_pgmq.__all__ == PUBLIC


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_export_exists_once(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]

    assert len(names) == len(set(names))
    assert all(hasattr(package, name) for name in names)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_package_has_a_docstring(package: object) -> None:
    assert inspect.getdoc(package)


CLASSES = [
    value
    for package in PACKAGES
    for name in package.__all__
    if inspect.isclass(value := getattr(package, name)) and value.__module__.startswith("apalis_pgmq")
]


@pytest.mark.parametrize("public", sorted(set(CLASSES), key=str), ids=lambda public: public.__qualname__)
def test_every_public_class_and_method_has_a_docstring_of_its_own(public: type) -> None:
    assert public.__doc__
    assert not public.__doc__.startswith(f"{public.__name__}(")
    for name, member in vars(public).items():
        if not name.startswith("_") and (
            inspect.isfunction(member) or isinstance(member, property | classmethod)
        ):
            assert inspect.getdoc(member), f"{public.__qualname__}.{name}"


def test_every_error_of_the_library_has_one_root() -> None:
    errors = [value for value in CLASSES if issubclass(value, BaseException)]

    assert errors
    assert all(issubclass(error, apalis_pgmq.ApalisError) for error in errors)
