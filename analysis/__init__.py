"""What is made of predicted ages: brain-PAD, its correction and limits, and saliency."""

import sys

from utils.packages import report_uncaught

# The program brain_pad/recalibrate.py imports packages at its top, before `run_entry`.
sys.excepthook = report_uncaught
