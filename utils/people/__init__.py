"""Who was scanned: tables of any kind, ages and sexes in them, and the row of a scan."""
