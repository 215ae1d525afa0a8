"""The standard library's `multiprocessing.dummy`, the very module."""

import sys
from multiprocessing import dummy

sys.modules[__name__] = dummy
