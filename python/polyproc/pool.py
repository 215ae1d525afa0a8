"""The standard library's `multiprocessing.pool`, the very module."""

import sys
from multiprocessing import pool

sys.modules[__name__] = pool
