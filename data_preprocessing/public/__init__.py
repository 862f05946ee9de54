"""Public cohorts as they are downloaded, read by datasets.py.

tables.py and releases.py read their label tables and file names; unoriented.py reads volumes whose
files do not say where left is.
"""
