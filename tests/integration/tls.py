"""A server with TLS: PostgreSQL's own handshake in front of a server that may not have been built with it."""

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65_536
_REQUEST = b"\x00\x00\x00\x08" + (80877103).to_bytes(4, "big")
"""What a client says first that wants TLS."""


def make_certificate(directory: Path, name: str) -> Path:
    """Make a self-signed certificate for 127.0.0.1 and its key; return the certificate's path."""
    certificate = directory / f"{name}.crt"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", directory / f"{name}.key", "-out", certificate),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return certificate


class TlsProxy:
    """Answers a request for TLS as PostgreSQL does with ``ssl = on``, and passes on what it decrypts.

    Args:
        url: the server's URL.
        certificate: what to show; its key lies beside it.

    Attributes:
        encrypted: how many connections were encrypted.
        plain: how many were not.
    """

    def __init__(self, url: str, certificate: Path) -> None:
        self._parts = urlsplit(url)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._tasks: set[asyncio.Task[None]] = set()
        self.encrypted = 0
        self.plain = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, **options: object) -> str:
        """The server's URL, by way of the proxy, with these parameters."""
        account = self._parts.netloc.rpartition("@")[0]
        port = self._listener.sockets[0].getsockname()[1]
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return self._parts._replace(netloc=f"{account}@127.0.0.1:{port}", query=query).geturl()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server: asyncio.StreamWriter | None = None
        try:
            first = await reader.readexactly(len(_REQUEST))
            if first == _REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._context)
                self.encrypted += 1
                first = b""
            else:
                self.plain += 1
            from_server, server = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            server.write(first)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, server))
                pumps.create_task(_pump(from_server, writer))
        except (OSError, EOFError):
            pass  # the client did not like what it was shown, or has gone
        finally:
            for one in (writer, server):
                if one is not None:
                    one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
