"""The code of docs/codecs.md, as it stands there."""

import re
from dataclasses import dataclass

import pytest

from apalis_pgmq import JsonCodec, KeyRing, PgMqBackend

from .test_readme import ROOT

DOCUMENT = (ROOT / "docs" / "codecs.md").read_text()


def run(name: str, names: dict[str, object]) -> dict[str, object]:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found, f"docs/codecs.md has no block {name!r}"
    exec(compile(found.group(1), "codecs.md", "exec", dont_inherit=True), names)
    return names


async def test_the_layers_work_as_written(pgmq_url: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class EmailMessage:
        to: str

    monkeypatch.setenv("EMAIL_KEYS", f"2026-11:{KeyRing.new_key()},2026-01:{KeyRing.new_key()}")
    names = run("layers", {"EmailMessage": EmailMessage, "url": pgmq_url})
    emails = names["emails"]
    assert isinstance(emails, PgMqBackend)
    async with emails:
        await emails.push(EmailMessage("ada"))
        async with emails.poll() as consumer:
            task = await anext(consumer)
            assert task.args == EmailMessage("ada")
            assert task.headers["x-encryption-key"] == "2026-11"
            consumer.ack(task)


def test_bytes_travel_as_written() -> None:
    scan_type = run("bytes", {"__name__": __name__})["Scan"]
    assert isinstance(scan_type, type)
    codec = JsonCodec(scan_type)
    scan = scan_type("page 1", bytes(range(256)))
    assert codec.decode(codec.encode(scan)) == scan


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
