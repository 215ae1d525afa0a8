"""The standard library's `multiprocessing.process`, the very module."""

import sys
from multiprocessing import process

sys.modules[__name__] = process
