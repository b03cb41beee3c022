"""What the URL says of TLS is what is done."""

import shutil
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from apalis_pgmq import ApalisError, PgMqBackend, Transaction, WorkerBuilder

from .conftest import Email, Table
from .test_delivery import Running
from .tls import TlsProxy, make_certificate

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture
async def server(pgmq_url: str, certificate: Path) -> AsyncIterator[TlsProxy]:
    async with TlsProxy(pgmq_url, certificate) as server:
        yield server


@pytest.mark.parametrize("sslmode", ["disable", "require", "verify-ca", "verify-full"])
async def test_the_urls_sslmode_is_what_is_done(
    server: TlsProxy, certificate: Path, queue: str, table: Table, eventually: Eventually, sslmode: str
) -> None:
    """On every connection: for pushes, claims, settlements and transactions."""
    options = {"sslrootcert": certificate} if sslmode.startswith("verify") else {}
    handled = []

    async def handler(message: Email, tx: Transaction) -> None:
        handled.append(message.to)

    async with (
        PgMqBackend(server.url(sslmode=sslmode, **options), queue, Email) as backend,
        Running(WorkerBuilder("w").backend(backend).build(handler)),
    ):
        await backend.push(Email("x"))
        await eventually(table.is_empty)
    assert handled == ["x"]
    if sslmode == "disable":
        assert server.plain
        assert not server.encrypted
    else:
        assert server.encrypted
        assert not server.plain


@pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
async def test_a_certificate_of_an_unknown_authority_is_refused(
    server: TlsProxy, queue: str, tmp_path: Path, sslmode: str
) -> None:
    url = server.url(sslmode=sslmode, sslrootcert=make_certificate(tmp_path, "another"))
    password = urlsplit(url).password
    assert password
    with pytest.raises(ApalisError, match="certificate verify failed") as caught:
        await PgMqBackend(url, queue, Email).setup()
    assert "127.0.0.1" in str(caught.value)
    assert password not in "".join(traceback.format_exception(caught.value))
    assert not server.plain


async def test_a_certificate_for_another_host_is_refused(
    server: TlsProxy, certificate: Path, queue: str
) -> None:
    url = server.url(sslmode="verify-full", sslrootcert=certificate).replace("127.0.0.1", "localhost")
    with pytest.raises(ApalisError, match="certificate verify failed: Hostname mismatch"):
        await PgMqBackend(url, queue, Email).setup()


async def test_a_server_without_tls_is_refused_where_it_is_required(pgmq_url: str, queue: str, db) -> None:
    if await db.fetchval("SHOW ssl") == "on":
        pytest.skip("this server has TLS")
    with pytest.raises(ApalisError, match="rejected SSL upgrade"):
        await PgMqBackend(f"{pgmq_url}?sslmode=require", queue, Email).setup()
