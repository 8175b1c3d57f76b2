-- Of each disk: the size of its image file. What came in is in the other counters.
ALTER TABLE backup_disks ADD COLUMN written_bytes INTEGER CHECK (written_bytes >= 0);
