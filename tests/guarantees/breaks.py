"""The one-line changes of ``docs/guarantees.md``, each with the tests that must fail once it is made.

``python -m tests.guarantees`` carries them out; ``test_breaks.py`` holds this list and the document together.
"""

from typing import Final

from .codecs import CLAIM_CHECKS, LAYERS
from .dedup import ONCE_BY_KEY
from .model import Break
from .ordering import ORDER
from .outages import STAYS_UP
from .sending import SENDING
from .transactions import EXACTLY_ONCE
from .wakeups import IDLE_IS_QUIET

_DELIVERY: Final = "integration/test_delivery.py::"
_LEASES: Final = "unit/test_leases.py::"
_PAYLOADS: Final = "integration/test_dead_letters.py::TestMaxPayload::"
_FAULTS: Final = "integration/test_faults.py::"
_PROCESSES: Final = "integration/test_processes.py::"
_PROPERTIES: Final = "properties/test_store.py::"
_CHAOS: Final = "chaos/test_chaos.py::test_nothing_is_lost_and_nobody_works_on_what_is_not_theirs"

AT_LEAST_ONCE: Final = (
    Break(
        name="ack-before-the-handler",
        promise="At least once",
        file="delivery/_consumer.py",
        old="claim.task = task = Task(",
        new="self._settler.finish(claim)\n        claim.task = task = Task(",
        tests=(
            _PROCESSES + "test_kill_9_loses_nothing_and_the_messages_return_within_the_visibility_timeout",
        ),
    ),
    Break(
        name="dead-letters-without-headers",
        promise="At least once",
        file="pgmq/_sql.py",
        old="message, headers FROM dead ORDER BY msg_id",
        new="message, NULL::jsonb FROM dead ORDER BY msg_id",
        tests=(
            _PROPERTIES + "test_the_store_on_pgmq",
            _DELIVERY + "test_after_the_last_retry_the_message_is_dead_lettered_with_its_headers",
        ),
    ),
    Break(
        name="dead-letters-not-stored",
        promise="At least once",
        file="pgmq/_sql.py",
        old="message, headers FROM dead ORDER BY msg_id",
        new="message, headers FROM dead WHERE false",
        tests=(
            _PROPERTIES + "test_the_store_on_pgmq",
            _DELIVERY + "test_an_undecodable_payload_goes_to_the_dead_letters_and_the_worker_goes_on",
        ),
    ),
    Break(
        name="removals-do-not-wait-for-the-disk",
        promise="At least once",
        file="pgmq/_pool.py",
        old="self.settling = Lanes(self.source, size=size, settings=_SETTLING)",
        new="self.settling = Lanes(self.source, size=size, settings=_CLAIMING)",
        tests=(_DELIVERY + "test_what_sends_and_what_removes_waits_for_the_disk",),
    ),
    Break(
        name="pushes-do-not-wait-for-the-disk",
        promise="At least once",
        file="pgmq/_pool.py",
        old="self.sending = Lanes(self.source, size=size",
        new="self.sending = Lanes(self.source, size=size, settings=_CLAIMING",
        tests=(_DELIVERY + "test_what_sends_and_what_removes_waits_for_the_disk",),
    ),
)

ONE_OWNER: Final = (
    Break(
        name="no-extensions",
        promise="One owner at a time",
        file="delivery/_keeper.py",
        old="if claims:",
        new="if claims := []:",
        tests=(
            _DELIVERY + "test_a_handler_that_outlives_its_visibility_timeout_is_delivered_once",
            _DELIVERY + "test_buffered_messages_are_kept_too",
        ),
    ),
    Break(
        name="what-ran-out-is-run",
        promise="One owner at a time",
        file="delivery/_consumer.py",
        old="if claim.expires <= time.monotonic():",
        new="if False:",
        tests=("unit/test_faulty_store.py::test_a_buffered_message_whose_lease_ran_out_is_not_run",),
    ),
    Break(
        name="no-extensions-in-chaos",
        promise="One owner at a time",
        file="delivery/_keeper.py",
        old="if claims:",
        new="if claims := []:",
        tests=(_CHAOS + "[harmless faults]",),
        slow=True,
    ),
    Break(
        name="max-lease-forgotten",
        promise="One owner at a time",
        file="delivery/_consumer.py",
        old="time.monotonic() + self._max_lease",
        new="math.inf",
        tests=(
            _DELIVERY + "test_a_handler_that_hangs_is_let_go_after_max_lease",
            _LEASES
            + "test_a_handler_that_hangs_beyond_max_lease_is_cancelled_and_its_message_delivered_again",
        ),
    ),
    Break(
        name="stalls-not-told",
        promise="One owner at a time",
        file="delivery/_keeper.py",
        old="if now - due > self._interval / 2:",
        new="if False:",
        tests=(_DELIVERY + "test_a_blocked_event_loop_is_reported",),
    ),
)

FENCED: Final = (
    Break(
        name="fence-without-vt",
        promise="Fenced",
        file="pgmq/_sql.py",
        old=" AND m.vt = ($4::timestamptz[])[f.vt_number]",
        new="",
        tests=(
            _DELIVERY + "TestFence::test_late_settlements_change_nothing",
            _DELIVERY + "TestFence::test_a_lost_lease_is_not_extended_and_its_handler_is_cancelled",
            _PROPERTIES + "test_the_store_on_pgmq",
        ),
    ),
    Break(
        name="fence-by-id-alone",
        promise="Fenced",
        file="pgmq/_sql.py",
        old=" AND m.read_ct = f.read_ct AND m.vt = ($4::timestamptz[])[f.vt_number]",
        new="",
        tests=(
            _DELIVERY + "TestFence::test_late_settlements_change_nothing",
            _PROPERTIES + "test_the_store_on_pgmq",
        ),
    ),
    Break(
        name="memory-fence-without-vt",
        promise="Fenced",
        file="memory/_store.py",
        old=" or message.vt != claim.vt",
        new="",
        tests=(_PROPERTIES + "test_the_store_in_memory",),
    ),
    Break(
        name="loss-not-told",
        promise="Fenced",
        file="delivery/_consumer.py",
        old="self._reports.lost(claim)",
        new="pass",
        tests=(
            _DELIVERY + "TestFence::test_late_settlements_change_nothing",
            _LEASES + "test_a_lost_lease_cancels_the_handler_and_is_told",
        ),
    ),
    Break(
        name="loss-cancels-nothing",
        promise="Fenced",
        file="delivery/_consumer.py",
        old="self._on_lost(claim.id)",
        new="pass",
        tests=(_DELIVERY + "TestFence::test_a_lost_lease_is_not_extended_and_its_handler_is_cancelled",),
    ),
)

BOUNDED: Final = (
    Break(
        name="deliveries-not-counted",
        promise="Bounded retries",
        file="delivery/_consumer.py",
        old="if claim.read_ct > self._most_deliveries:",
        new="if False:",
        tests=(
            _DELIVERY + "test_a_message_whose_workers_die_is_dead_lettered_without_running_again",
            _PROCESSES + "test_a_message_whose_handler_kills_the_process_ends_in_the_dead_letters",
        ),
        # The poisoned message kills one process after the other, for ever.
        hangs=True,
    ),
    Break(
        name="failures-not-counted",
        promise="Bounded retries",
        file="worker/_retry.py",
        old="if attempt > max_retries:",
        new="if False:",
        tests=("unit/test_outcomes.py::test_a_message_is_delivered_one_time_and_max_retries_more",),
    ),
    Break(
        name="abort-is-retried",
        promise="Bounded retries",
        file="worker/_retry.py",
        old="if not wanted:",
        new="if False:",
        tests=(_DELIVERY + "test_abort_dead_letters_at_once",),
    ),
    Break(
        name="undecodable-ends-the-worker",
        promise="Bounded retries",
        file="delivery/_consumer.py",
        old="self._discard(claim, DeadLetterReason.UNDECODABLE, error)",
        new="raise",
        tests=(_DELIVERY + "test_an_undecodable_payload_goes_to_the_dead_letters_and_the_worker_goes_on",),
    ),
    Break(
        name="redrive-loses",
        promise="Bounded retries",
        file="pgmq/_sql.py",
        old="headers FROM back ORDER BY msg_id",
        new="headers FROM back WHERE false",
        tests=("integration/test_dead_letters.py::TestRedrive::test_a_redriven_message_is_delivered_anew",),
    ),
)

CLEAN_STOP: Final = (
    Break(
        name="handing-back-spends-an-attempt",
        promise="Clean stop",
        file="delivery/_consumer.py",
        old="refund=refund)",
        new="refund=0)",
        tests=(_DELIVERY + "test_stopping_hands_back_what_was_not_started_without_spending_an_attempt",),
    ),
    Break(
        name="closing-waits-for-ever",
        promise="Clean stop",
        file="delivery/_consumer.py",
        old="async with asyncio.timeout(_CLOSE_TIMEOUT):",
        new="async with asyncio.timeout(None):",
        tests=(_FAULTS + "TestSilence::test_a_worker_stops_all_the_same",),
    ),
    Break(
        name="closing-does-not-wait-for-outcomes",
        promise="Clean stop",
        file="delivery/_consumer.py",
        old="await self._stored()",
        new="pass",
        tests=("unit/test_faulty_store.py::test_closing_waits_for_an_outcome_that_is_being_stored",),
    ),
    Break(
        name="stopping-cancels-what-runs",
        promise="Clean stop",
        file="worker/_worker.py",
        old="self._consumer.stop()",
        new="self._consumer.stop()\n            [one.cancel() for one in self._running.values()]",
        tests=("unit/test_lifecycle.py::test_stopping_finishes_what_runs",),
    ),
    Break(
        name="signals-not-heard",
        promise="Clean stop",
        file="worker/_signals.py",
        old="on_signal()",
        new="pass",
        tests=("unit/test_signals.py::test_the_first_signal_finishes_what_runs",),
    ),
    Break(
        name="shutdown-timeout-forgotten",
        promise="Clean stop",
        file="worker/_monitor.py",
        old="run.hurry, self._shutdown_timeout.total_seconds())",
        new="run.hurry)",
        tests=("unit/test_monitor.py::test_what_outlasts_the_shutdown_timeout_is_cancelled_and_handed_back",),
    ),
    Break(
        name="second-signal-not-heard",
        promise="Clean stop",
        file="worker/_monitor.py",
        old="self.hurry.set()",
        new="pass",
        tests=(
            "unit/test_signals.py::test_the_second_signal_cancels_and_hands_back",
            "unit/test_monitor.py::test_a_second_stop_hurries",
        ),
    ),
)


BOUNDS: Final = (
    Break(
        name="payloads-without-a-bound",
        promise="What is sent, and what is shown",
        file="core/_config.py",
        old="if size > limit:",
        new="if False:",
        tests=(
            _PAYLOADS + "test_the_bound_is_bytes_of_json",
            _PAYLOADS + "test_a_mebibyte_is_the_default_and_none_is_no_bound",
        ),
    ),
    Break(
        name="tls-options-dropped",
        promise="What is sent, and what is shown",
        file="pgmq/_connect.py",
        old="self._url = url",
        new='self._url = url.partition("?")[0]',
        tests=(
            "integration/test_tls.py::test_the_urls_sslmode_is_what_is_done",
            "integration/test_tls.py::test_a_certificate_of_an_unknown_authority_is_refused",
        ),
    ),
    Break(
        name="passwords-in-addresses",
        promise="What is sent, and what is shown",
        file="pgmq/_connect.py",
        old='hosts = parts.netloc.rpartition("@")[2]',
        new="hosts = parts.netloc",
        tests=(
            "integration/test_secrets.py::test_no_log_line_of_a_worker_shows_the_password",
            "integration/test_secrets.py::test_no_error_shows_the_password",
            "integration/test_secrets.py::test_no_repr_shows_the_password",
        ),
    ),
)

CHAOS: Final = (
    Break(
        name="ack-before-the-handler-in-chaos",
        promise="The chaos suite",
        file="delivery/_consumer.py",
        old="claim.task = task = Task(",
        new="self._settler.finish(claim)\n        claim.task = task = Task(",
        tests=(_CHAOS + "[all faults]",),
        slow=True,
    ),
    Break(
        name="no-extensions-in-all-chaos",
        promise="The chaos suite",
        file="delivery/_keeper.py",
        old="if claims:",
        new="if claims := []:",
        tests=(_CHAOS + "[all faults]",),
        slow=True,
    ),
)

BREAKS: Final = (
    *AT_LEAST_ONCE,
    *ONE_OWNER,
    *FENCED,
    *BOUNDED,
    *EXACTLY_ONCE,
    *ONCE_BY_KEY,
    *ORDER,
    *SENDING,
    *CLEAN_STOP,
    *IDLE_IS_QUIET,
    *STAYS_UP,
    *BOUNDS,
    *LAYERS,
    *CLAIM_CHECKS,
    *CHAOS,
)
