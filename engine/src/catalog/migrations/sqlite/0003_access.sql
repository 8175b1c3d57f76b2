-- Who may do what, and who did it. All of it is own: the legacy hub has neither.

CREATE TABLE access_tokens (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL UNIQUE CHECK (name <> ''),
    role          TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'read-only', 'node')),
    -- BLAKE3 of the whole text. The text itself is nowhere.
    hash          BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    -- A node's token goes with its job.
    backup_job_id TEXT REFERENCES backup_jobs (id) ON DELETE CASCADE,
    created_at    TEXT NOT NULL,
    CHECK ((role = 'node') = (backup_job_id IS NOT NULL))
) STRICT;
CREATE INDEX idx_tokens_job ON access_tokens (backup_job_id);
