"""Speed and memory: the authors' approach, stated plainly in plain.py, beside this project's.

measure.py times one form in its own process and compare.py puts forms side by side; networks.py and
loading.py hold what is measured, cases.py the rows of the table. docs/PERFORMANCE.md has results.
"""
