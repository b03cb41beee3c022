-- Roles with the least rights for one queue: who sends, who works, who looks after it.
--
-- Replace every  emails  by the queue's name in lower case, which is how PGMQ names its tables. Run it as the
-- owner of the schema pgmq and of the queue (a role that may also create roles), after
--
--     apalis-pgmq setup emails --url ...
--
-- has made the queue and its dead-letter queue. It can be run again: do so after PGMQ was updated, after
-- pgmq.enable_notify_insert and after the first use of claim_check_over. None of the roles can log in; grant them to those that do:
--
--     GRANT "emails_worker" TO my_login;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['emails_producer', 'emails_worker', 'emails_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA pgmq TO "emails_producer", "emails_worker", "emails_operator";

-- The producer sends. It reads nothing but the ids of messages, which INSERT ... RETURNING asks for.
GRANT INSERT (vt, message, headers), SELECT (msg_id) ON pgmq."q_emails" TO "emails_producer";

-- The worker claims, extends leases, acks and dead-letters. It cannot change what a message says, and not look
-- into the dead-letter queue. A worker that sends as well is granted the producer's role too.
GRANT SELECT, DELETE, UPDATE (vt, read_ct) ON pgmq."q_emails" TO "emails_worker";
GRANT INSERT (vt, message, headers) ON pgmq."q_emails_dlq" TO "emails_worker";

-- For on_success="archive" and dead_letter="archive" only; leave it out otherwise.
GRANT INSERT, SELECT (msg_id) ON pgmq."a_emails" TO "emails_worker";

-- The operator sees the queue, its archive and its dead letters, puts these back and deletes them. FOR UPDATE
-- asks for the right to update some column.
GRANT SELECT ON pgmq."q_emails", pgmq."a_emails" TO "emails_operator";
GRANT SELECT, DELETE, UPDATE (vt) ON pgmq."q_emails_dlq" TO "emails_operator";
GRANT INSERT (vt, message, headers) ON pgmq."q_emails" TO "emails_operator";

DO $$
BEGIN
    -- PGMQ 1.10 and later: a claim writes when it was made.
    IF EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'pgmq."q_emails"'::regclass AND attname = 'last_read_at' AND NOT attisdropped
    ) THEN
        GRANT UPDATE (last_read_at) ON pgmq."q_emails" TO "emails_worker";
    END IF;
    -- claim_check_over: large payloads have a table of their own, which setting up a backend that has it makes.
    IF to_regclass('pgmq."b_emails"') IS NOT NULL THEN
        GRANT INSERT (id, body) ON pgmq."b_emails" TO "emails_producer";
        GRANT SELECT (id, body), DELETE ON pgmq."b_emails" TO "emails_worker", "emails_operator";
    END IF;
    -- pgmq.enable_notify_insert: its trigger runs with the rights of whoever inserts.
    IF EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid IN ('pgmq."q_emails"'::regclass, 'pgmq."q_emails_dlq"'::regclass)
          AND tgname = 'trigger_notify_queue_insert_listeners'
    ) AND to_regclass('pgmq.notify_insert_throttle') IS NOT NULL THEN
        GRANT SELECT, UPDATE (last_notified_at) ON pgmq.notify_insert_throttle
            TO "emails_producer", "emails_worker", "emails_operator";
    END IF;
END $$;
