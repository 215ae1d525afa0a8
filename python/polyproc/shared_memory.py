"""The standard library's `multiprocessing.shared_memory`, the very module."""

import sys
from multiprocessing import shared_memory

sys.modules[__name__] = shared_memory
