"""A scan and how it was made: volumes, cohorts, folds, leakage, caches, batches."""
