"""From raw scans to what the network reads, and cohorts to try it on."""
