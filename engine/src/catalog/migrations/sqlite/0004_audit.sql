-- Who did what. Own, like all of access; rows are added, and the oldest go when there are more than the engine's limit.

CREATE TABLE audit_log (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         TEXT NOT NULL,
    -- A token's name, 'loopback', 'anonymous', 'unknown' or 'command line'.
    actor      TEXT NOT NULL CHECK (actor <> ''),
    -- NULL where nobody was known.
    role       TEXT,
    peer       TEXT,
    verb       TEXT NOT NULL,
    object     TEXT NOT NULL,
    outcome    TEXT NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
    status     INTEGER NOT NULL,
    request_id TEXT NOT NULL
) STRICT;
CREATE INDEX idx_audit_actor ON audit_log (actor, id);
CREATE INDEX idx_audit_verb ON audit_log (verb, id);

CREATE TRIGGER audit_log_is_not_changed BEFORE UPDATE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;

-- What is younger than the newest 100 000 rows stays, whoever asks (limits.rs, AUDIT_ROWS_MAX).
CREATE TRIGGER audit_log_is_not_cut BEFORE DELETE ON audit_log
WHEN OLD.id > (SELECT MAX(id) FROM audit_log) - 100000
BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;
