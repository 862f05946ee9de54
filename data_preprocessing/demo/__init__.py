"""The synthetic cohort of make_demo_cohort.py, so that every command can be tried without scans.

phantom.py makes one brain; cohort.py draws the people and writes the folders. Nobody was scanned.
"""
