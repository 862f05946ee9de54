"""From raw scans to what the network reads, and cohorts to try it on.

The modules in this folder are programs, started by script/*.sh or `python -m`; no module imports
them. pipeline/ brings a raw scan onto the network's grid, public/ reads public cohorts, demo/ makes
synthetic brains.
"""

import sys

from utils.packages import report_uncaught

# The programs import packages at their top, so `run_entry` comes too late for a missing one.
sys.excepthook = report_uncaught
