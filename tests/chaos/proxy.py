"""A TCP proxy in front of PostgreSQL that can go silent without closing, and can lose answers."""

import asyncio
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 65_536


class Link:
    """One connection of a client, and ours to the server on its behalf."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.flows = asyncio.Event()
        self.flows.set()
        # Set from the moment on when the statement whose answer is to be lost went to the server.
        self.doomed = False

    def cut(self) -> None:
        """End it as a router does that resets connections."""
        self.flows.set()
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Passes on everything between clients and a server, until told otherwise.

    Args:
        url: the server's URL.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._parts = parts
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._swallows_new = False
        self._lose: str | None = None
        self._silence_after: str | None = None
        self.answer_lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The server's URL, by way of the proxy."""
        account = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{account}@127.0.0.1:{self._port}").geturl()

    @property
    def connections(self) -> int:
        """How many connections there are now, silent ones included."""
        return len(self._links)

    def silence(self, *, new_ones_too: bool = False) -> None:
        """Pass nothing more on over what is connected now, and close nothing: half-open sockets.

        Args:
            new_ones_too: new connections are accepted, and nothing is passed on over them either.
        """
        self._swallows_new = new_ones_too
        for link in self._links:
            link.flows.clear()

    def swallow_new_ones(self, *, swallow: bool) -> None:
        """Say whether connections that are made from now on are silent; what is connected stays as it is."""
        self._swallows_new = swallow

    def silence_after(self, part_of_statement: str) -> None:
        """Pass nothing more on over the connection that next executes such a statement, once the server has it."""
        self._silence_after = part_of_statement

    def heal(self) -> None:
        """Pass on what was held back, as TCP does when the network is back, and all that follows."""
        self._swallows_new = False
        for link in self._links:
            link.flows.set()

    def cut(self) -> None:
        """Reset every connection; new ones are passed on."""
        self._swallows_new = False
        for link in list(self._links):
            link.cut()

    def lose_answer(self, part_of_statement: str) -> None:
        """Reset the connection that next executes such a statement, when the server has carried it out.

        ``answer_lost`` is set when that has happened.
        """
        self.answer_lost.clear()
        self._lose = part_of_statement

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server_writer)
        if self._swallows_new:
            link.flows.clear()
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._to_server(link, reader))
                pumps.create_task(self._to_client(link, server_reader))
        finally:
            self._links.discard(link)
            link.cut()

    async def _to_server(self, link: Link, reader: asyncio.StreamReader) -> None:
        client = _ClientMessages()
        try:
            while data := await reader.read(_CHUNK):
                await link.flows.wait()
                for statement in client.executed(data):
                    if self._lose is not None and self._lose in statement:
                        self._lose = None
                        link.doomed = True
                    if self._silence_after is not None and self._silence_after in statement:
                        self._silence_after = None
                        link.flows.clear()
                link.server.write(data)
                await link.server.drain()
            await link.flows.wait()
            link.server.close()
        except OSError:
            link.cut()

    async def _to_client(self, link: Link, reader: asyncio.StreamReader) -> None:
        answer = b""
        try:
            while data := await reader.read(_CHUNK):
                await link.flows.wait()
                if link.doomed:
                    answer += data
                    # ReadyForQuery, outside a transaction: it is carried out and committed.
                    if answer.endswith(b"Z\x00\x00\x00\x05I"):
                        link.cut()
                        self.answer_lost.set()
                        return
                    continue
                link.client.write(data)
                await link.client.drain()
            await link.flows.wait()
            link.client.close()
        except OSError:
            link.cut()


class _ClientMessages:
    """Follows what a client says, to know which statement each Bind executes."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_started = False
        self._statements: dict[bytes, str] = {}

    def executed(self, data: bytes) -> Iterator[str]:
        self._rest += data
        while True:
            # The very first message has no type.
            start = 1 if self._is_started else 0
            if len(self._rest) < start + 4:
                return
            length = start + int.from_bytes(self._rest[start : start + 4], "big")
            if len(self._rest) < length:
                return
            message, self._rest = self._rest[:length], self._rest[length:]
            if not self._is_started:
                # A request for TLS is answered by one byte, and the first message proper follows.
                self._is_started = message[4:8] != (80877103).to_bytes(4, "big")
            elif message[:1] == b"P":
                name, statement = message[5:].split(b"\x00", 2)[:2]
                self._statements[name] = statement.decode()
            elif message[:1] == b"B":
                _portal, name = message[5:].split(b"\x00", 2)[:2]
                yield self._statements.get(name, "")
