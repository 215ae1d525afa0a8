"""The standard library's `multiprocessing.heap`, the very module."""

import sys
from multiprocessing import heap

sys.modules[__name__] = heap
