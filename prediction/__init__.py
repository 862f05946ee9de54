"""From scans of any kind to a table of brain ages: what predict.py is made of."""
