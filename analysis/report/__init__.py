"""The report of predicted ages: one HTML file."""
