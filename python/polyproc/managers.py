"""The standard library's `multiprocessing.managers`, the very module."""

import sys
from multiprocessing import managers

sys.modules[__name__] = managers
