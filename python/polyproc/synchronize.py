"""The standard library's `multiprocessing.synchronize`, the very module."""

import sys
from multiprocessing import synchronize

sys.modules[__name__] = synchronize
