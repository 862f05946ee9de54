"""Everything around a network: flags, labels, scans, training, results."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - older ones would stop at a type annotation
    sys.exit(f"error: Python 3.10 or newer expected, {sys.executable} is {sys.version.split()[0]}")
