"""Django: a view sends a message in its own transaction, and a worker handles it.

A whole project in one file. It runs on a throw-away server, and asks itself, in place of a browser. Needs django and
psycopg.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from apalis_pgmq import PgMqBackend, PgMqProducer, PgMqQueues, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres


@dataclass
class Order:
    """What is sent when an order was placed."""

    id: int
    customer: str


# Of the thread's connection, whichever that is: it connects to nothing by itself.
orders = PgMqProducer(connection, "orders", Order)


@transaction.atomic
def place(request: HttpRequest) -> HttpResponse:
    """Store an order, and send that it was placed: both or neither."""
    customer = request.POST["customer"]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (customer) VALUES (%s) RETURNING id", [customer])
        [number] = cursor.fetchone()
    orders.push(Order(number, customer))
    if customer == "Mallory":
        transaction.set_rollback(True)  # takes the message back with the order
        return HttpResponse("no credit", status=403)
    return HttpResponse(str(number), status=201)


urlpatterns = [path("orders", place)]


def configure(url: str) -> None:
    """Do what a settings.py does."""
    parts = urlsplit(url)
    default = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "USER": parts.username,
        "PASSWORD": parts.password,
        "HOST": parts.hostname,
        "PORT": parts.port,
    }
    settings.configure(DATABASES={"default": default}, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
    django.setup()


def ask() -> None:
    """Place two orders, of which one fails."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, customer text)")
    for customer in ("Mallory", "Ada"):
        answer = Client().post("/orders", {"customer": customer})
        print(f"{customer} was answered {answer.status_code}")
    connection.close()


async def confirm(order: Order, worker: WorkerContext) -> None:
    """Confirm an order; the example ends with Ada's."""
    print(f"Order {order.id} of {order.customer} confirmed")
    if order.customer == "Ada":
        worker.stop()


async def prepare(url: str) -> None:
    """Make the queue, as 'apalis-pgmq setup orders' does: once, when you deploy."""
    async with PgMqQueues(url) as queues:
        await queues.create("orders")


async def work(url: str) -> None:
    """Work the queue: in a process of its own, as a rule."""
    async with PgMqBackend(url, "orders", Order) as backend:
        await WorkerBuilder("orders").backend(backend).build(confirm).run()


if __name__ == "__main__":
    with embedded_postgres() as database:
        configure(database)
        asyncio.run(prepare(database))
        ask()
        asyncio.run(work(database))
