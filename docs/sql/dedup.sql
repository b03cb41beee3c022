-- What a sender with dedup_key needs beside the rights of roles.sql.
--
-- Replace every  emails  by the queue's name in lower case, and run it as the owner of the schema pgmq, after
--
--     apalis-pgmq setup emails --dedup --url ...
--
-- has made the table of the keys. All queues share it: a role with these rights sees and can free the keys of
-- other queues, though not their messages.

GRANT SELECT, INSERT, UPDATE, DELETE ON pgmq.apalis_pgmq_dedup TO "emails_producer";
GRANT INSERT (msg_id) ON pgmq."q_emails" TO "emails_producer";
GRANT USAGE ON SEQUENCE pgmq."q_emails_msg_id_seq" TO "emails_producer";
