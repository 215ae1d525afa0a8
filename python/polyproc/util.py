"""The standard library's `multiprocessing.util`, the very module."""

import sys
from multiprocessing import util

sys.modules[__name__] = util
