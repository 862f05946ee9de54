"""Everything around a network: flags, labels, scans, training, results."""
