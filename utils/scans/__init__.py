"""A scan and its people: volumes, label sheets, cohorts, how a scan was made, caches, batches."""
