"""Ages that are known: metrics, tables, plots, pages, the baseline."""
