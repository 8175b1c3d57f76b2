-- The catalog, first version. Tables and columns have the names of the legacy hub's schema; what it lacks is marked "own" and
-- is NULL in rows that it wrote.
--
-- Times are UTC text, `YYYY-MM-DD HH:MM:SS.ffffff` (a legacy row may lack the fraction), so that text order is time order.
-- A reference to nothing is NULL, never ''. Enums are words under a CHECK. Every foreign key has an index.

CREATE TABLE vmware_credentials (
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,
    credential_name    TEXT NOT NULL UNIQUE,
    vcenter_host       TEXT NOT NULL,
    username           TEXT NOT NULL,
    password_encrypted TEXT NOT NULL CHECK (password_encrypted <> ''),
    datacenter         TEXT NOT NULL DEFAULT '',
    is_active          INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    is_default         INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    created_at         TEXT NOT NULL,
    updated_at         TEXT NOT NULL,
    created_by         TEXT,
    last_used          TEXT,
    usage_count        INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE vm_replication_contexts (
    context_id     TEXT PRIMARY KEY NOT NULL CHECK (context_id <> ''),
    vm_name        TEXT NOT NULL CHECK (vm_name <> ''),
    -- NULL where the hypervisor's id is not known: '' would be the same id for all of them.
    vmware_vm_id   TEXT CHECK (vmware_vm_id <> ''),
    vm_path        TEXT NOT NULL DEFAULT '',
    vcenter_host   TEXT NOT NULL DEFAULT '',
    datacenter     TEXT NOT NULL DEFAULT '',
    current_status TEXT NOT NULL DEFAULT 'discovered',
    power_state    TEXT,
    os_type        TEXT,
    cpu_count      INTEGER,
    memory_mb      INTEGER,
    credential_id  INTEGER REFERENCES vmware_credentials (id) ON DELETE SET NULL,
    created_at     TEXT NOT NULL,
    updated_at     TEXT NOT NULL,
    UNIQUE (vm_name, vcenter_host),
    UNIQUE (vmware_vm_id, vcenter_host)
) STRICT;
CREATE INDEX idx_vm_contexts_credential ON vm_replication_contexts (credential_id);

CREATE TABLE vm_disks (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_context_id     TEXT NOT NULL REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE,
    job_id            TEXT,
    disk_id           TEXT NOT NULL,
    vm_dk_path        TEXT,
    size_gb           INTEGER NOT NULL DEFAULT 0,
    datastore         TEXT,
    unit_number       INTEGER,
    label             TEXT NOT NULL DEFAULT '',
    capacity_bytes    INTEGER NOT NULL CHECK (capacity_bytes > 0),
    provisioning_type TEXT,
    disk_change_id    TEXT,
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    UNIQUE (vm_context_id, disk_id)
) STRICT;

CREATE TABLE backup_repositories (
    id                   TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    name                 TEXT NOT NULL UNIQUE,
    repository_type      TEXT NOT NULL CHECK (repository_type IN ('local', 'nfs', 'cifs', 'smb', 's3', 'azure')),
    enabled              INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    config               TEXT NOT NULL CHECK (json_valid(config)),
    is_immutable         INTEGER NOT NULL DEFAULT 0 CHECK (is_immutable IN (0, 1)),
    immutable_config     TEXT CHECK (json_valid(immutable_config)),
    min_retention_days   INTEGER NOT NULL DEFAULT 0,
    total_size_bytes     INTEGER NOT NULL DEFAULT 0,
    used_size_bytes      INTEGER NOT NULL DEFAULT 0,
    available_size_bytes INTEGER NOT NULL DEFAULT 0,
    last_check_at        TEXT,
    created_at           TEXT NOT NULL,
    updated_at           TEXT NOT NULL
) STRICT;
CREATE INDEX idx_type ON backup_repositories (repository_type);
CREATE INDEX idx_enabled ON backup_repositories (enabled);
CREATE INDEX idx_immutable ON backup_repositories (is_immutable);

CREATE TABLE backup_policies (
    id                    TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    name                  TEXT NOT NULL UNIQUE,
    enabled               INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    primary_repository_id TEXT NOT NULL REFERENCES backup_repositories (id) ON DELETE RESTRICT,
    retention_days        INTEGER NOT NULL DEFAULT 30,
    created_at            TEXT NOT NULL,
    updated_at            TEXT NOT NULL
) STRICT;
CREATE INDEX idx_policies_enabled ON backup_policies (enabled);
CREATE INDEX idx_policies_repository ON backup_policies (primary_repository_id);

CREATE TABLE backup_copy_rules (
    id                        TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    policy_id                 TEXT NOT NULL REFERENCES backup_policies (id) ON DELETE CASCADE,
    destination_repository_id TEXT NOT NULL REFERENCES backup_repositories (id) ON DELETE RESTRICT,
    copy_mode                 TEXT NOT NULL DEFAULT 'immediate' CHECK (copy_mode IN ('immediate', 'scheduled', 'manual')),
    priority                  INTEGER NOT NULL,
    enabled                   INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    verify_after_copy         INTEGER NOT NULL DEFAULT 1 CHECK (verify_after_copy IN (0, 1)),
    created_at                TEXT NOT NULL
) STRICT;
CREATE INDEX idx_copy_rules_policy ON backup_copy_rules (policy_id);
CREATE INDEX idx_copy_rules_repository ON backup_copy_rules (destination_repository_id);

CREATE TABLE vm_backup_contexts (
    context_id         TEXT PRIMARY KEY NOT NULL CHECK (context_id <> ''),
    vm_name            TEXT NOT NULL CHECK (vm_name <> ''),
    vmware_vm_id       TEXT NOT NULL DEFAULT '',
    vm_path            TEXT NOT NULL DEFAULT '',
    vcenter_host       TEXT NOT NULL DEFAULT '',
    datacenter         TEXT NOT NULL DEFAULT '',
    repository_id      TEXT NOT NULL REFERENCES backup_repositories (id) ON DELETE RESTRICT,
    total_backups_run  INTEGER NOT NULL DEFAULT 0,
    successful_backups INTEGER NOT NULL DEFAULT 0,
    failed_backups     INTEGER NOT NULL DEFAULT 0,
    last_backup_id     TEXT,
    last_backup_type   TEXT CHECK (last_backup_type IN ('full', 'incremental')),
    last_backup_at     TEXT,
    created_at         TEXT NOT NULL,
    updated_at         TEXT NOT NULL,
    UNIQUE (vm_name, repository_id)
) STRICT;
CREATE INDEX idx_contexts_repository ON vm_backup_contexts (repository_id);
CREATE INDEX idx_last_backup ON vm_backup_contexts (last_backup_at);

CREATE TABLE backup_jobs (
    id                   TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    vm_backup_context_id TEXT REFERENCES vm_backup_contexts (context_id) ON DELETE CASCADE,
    vm_context_id        TEXT NOT NULL REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE,
    vm_name              TEXT NOT NULL,
    disk_id              INTEGER NOT NULL DEFAULT 0,
    repository_id        TEXT NOT NULL REFERENCES backup_repositories (id) ON DELETE RESTRICT,
    policy_id            TEXT REFERENCES backup_policies (id) ON DELETE SET NULL,
    backup_type          TEXT NOT NULL CHECK (backup_type IN ('full', 'incremental', 'differential')),
    status               TEXT NOT NULL DEFAULT 'pending'
                         CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    -- '/multi-disk-parent' in the row of a backup; an image path in a legacy per-disk row.
    repository_path      TEXT NOT NULL,
    parent_backup_id     TEXT REFERENCES backup_jobs (id) ON DELETE SET NULL,
    change_id            TEXT,
    bytes_transferred    INTEGER NOT NULL DEFAULT 0,
    total_bytes          INTEGER NOT NULL DEFAULT 0,
    compression_enabled  INTEGER NOT NULL DEFAULT 0 CHECK (compression_enabled IN (0, 1)),
    error_message        TEXT,
    current_phase        TEXT NOT NULL DEFAULT 'pending',
    transfer_speed_bps   INTEGER NOT NULL DEFAULT 0,
    eta_seconds          INTEGER NOT NULL DEFAULT 0,
    progress_percent     REAL NOT NULL DEFAULT 0,
    last_telemetry_at    TEXT,
    created_at           TEXT NOT NULL,
    started_at           TEXT,
    completed_at         TEXT,
    -- own
    transfer             TEXT CHECK (transfer IN ('node', 'direct')),
    type_reason          TEXT,
    intent               TEXT CHECK (intent IN ('creating', 'publishing', 'deleting')),
    version              INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX idx_vm_context ON backup_jobs (vm_context_id);
CREATE INDEX idx_repository ON backup_jobs (repository_id);
CREATE INDEX idx_policy ON backup_jobs (policy_id);
CREATE INDEX idx_status ON backup_jobs (status);
CREATE INDEX idx_created ON backup_jobs (created_at);
CREATE INDEX idx_parent ON backup_jobs (parent_backup_id);
CREATE INDEX idx_backup_disk ON backup_jobs (vm_context_id, disk_id);
CREATE INDEX idx_backup_context ON backup_jobs (vm_backup_context_id);
CREATE INDEX idx_last_telemetry ON backup_jobs (status, last_telemetry_at);
CREATE INDEX idx_intent ON backup_jobs (intent) WHERE intent IS NOT NULL;
-- A client deletes the snapshots of an earlier run of its VM, so two running backups of one VM would ruin each other.
CREATE UNIQUE INDEX one_running_backup_per_vm ON backup_jobs (vm_context_id)
    WHERE status IN ('pending', 'running') AND repository_path = '/multi-disk-parent';

CREATE TABLE backup_disks (
    id                   INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_backup_context_id TEXT NOT NULL REFERENCES vm_backup_contexts (context_id) ON DELETE CASCADE,
    backup_job_id        TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    disk_index           INTEGER NOT NULL CHECK (disk_index >= 0),
    vmware_disk_key      INTEGER NOT NULL DEFAULT 0,
    size_gb              INTEGER NOT NULL DEFAULT 0,
    unit_number          INTEGER,
    disk_change_id       TEXT,
    qcow2_path           TEXT,
    bytes_transferred    INTEGER NOT NULL DEFAULT 0,
    progress_percent     REAL NOT NULL DEFAULT 0,
    status               TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'completed', 'failed')),
    error_message        TEXT,
    created_at           TEXT NOT NULL,
    completed_at         TEXT,
    -- own
    capacity_bytes       INTEGER CHECK (capacity_bytes > 0),
    -- The image below. A parent cannot go before its children; NO ACTION rather than RESTRICT, because RESTRICT would also refuse
    -- to remove a whole context, in which parent and child go together.
    parent_disk_id       INTEGER REFERENCES backup_disks (id) ON DELETE NO ACTION,
    base_change_id       TEXT,
    parent_reason        TEXT,
    chain_depth          INTEGER CHECK (chain_depth >= 1),
    export_name          TEXT,
    received_bytes       INTEGER CHECK (received_bytes >= 0),
    zero_bytes           INTEGER CHECK (zero_bytes >= 0),
    equal_bytes          INTEGER CHECK (equal_bytes >= 0),
    stored_bytes         INTEGER CHECK (stored_bytes >= 0),
    UNIQUE (backup_job_id, disk_index),
    -- A parent and the change id that was handed out for it are declared together or not at all.
    CHECK ((parent_disk_id IS NULL) = (base_change_id IS NULL))
) STRICT;
CREATE INDEX idx_change_id_lookup ON backup_disks (vm_backup_context_id, disk_index, status);
CREATE INDEX idx_completion ON backup_disks (backup_job_id, status);
CREATE INDEX idx_parent_disk ON backup_disks (parent_disk_id);

CREATE TABLE backup_copies (
    id                  TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    source_backup_id    TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    repository_id       TEXT NOT NULL REFERENCES backup_repositories (id) ON DELETE RESTRICT,
    copy_rule_id        TEXT REFERENCES backup_copy_rules (id) ON DELETE SET NULL,
    status              TEXT NOT NULL DEFAULT 'pending'
                        CHECK (status IN ('pending', 'copying', 'verifying', 'completed', 'failed')),
    file_path           TEXT NOT NULL,
    size_bytes          INTEGER NOT NULL DEFAULT 0,
    copy_started_at     TEXT,
    copy_completed_at   TEXT,
    verified_at         TEXT,
    verification_status TEXT NOT NULL DEFAULT 'pending' CHECK (verification_status IN ('pending', 'passed', 'failed')),
    error_message       TEXT,
    created_at          TEXT NOT NULL,
    UNIQUE (source_backup_id, repository_id)
) STRICT;
CREATE INDEX idx_copies_repository ON backup_copies (repository_id);
CREATE INDEX idx_copies_rule ON backup_copies (copy_rule_id);

-- One row per disk of a context: where its current chain begins and ends. `latest` moves only when a backup completes.
CREATE TABLE backup_chains (
    id               TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    vm_context_id    TEXT NOT NULL REFERENCES vm_backup_contexts (context_id) ON DELETE CASCADE,
    disk_id          INTEGER NOT NULL CHECK (disk_id >= 0),
    full_backup_id   TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    latest_backup_id TEXT NOT NULL REFERENCES backup_jobs (id) ON DELETE CASCADE,
    total_backups    INTEGER NOT NULL DEFAULT 0,
    total_size_bytes INTEGER NOT NULL DEFAULT 0,
    created_at       TEXT NOT NULL,
    updated_at       TEXT NOT NULL,
    UNIQUE (vm_context_id, disk_id)
) STRICT;
CREATE INDEX idx_chains_full ON backup_chains (full_backup_id);
CREATE INDEX idx_chains_latest ON backup_chains (latest_backup_id);

CREATE TABLE restore_mounts (
    id                 TEXT PRIMARY KEY NOT NULL CHECK (id <> ''),
    backup_disk_id     INTEGER NOT NULL UNIQUE REFERENCES backup_disks (id) ON DELETE CASCADE,
    mount_path         TEXT NOT NULL,
    nbd_device         TEXT UNIQUE,
    filesystem_type    TEXT,
    mount_mode         TEXT NOT NULL DEFAULT 'read-only' CHECK (mount_mode IN ('read-only', 'read-write')),
    status             TEXT NOT NULL DEFAULT 'mounting'
                       CHECK (status IN ('mounting', 'mounted', 'unmounting', 'failed', 'unmounted')),
    error_message      TEXT,
    created_at         TEXT NOT NULL,
    last_accessed_at   TEXT,
    expires_at         TEXT,
    unmounted_at       TEXT,
    partition_metadata TEXT CHECK (json_valid(partition_metadata))
) STRICT;
