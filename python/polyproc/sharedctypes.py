"""The standard library's `multiprocessing.sharedctypes`, the very module."""

import sys
from multiprocessing import sharedctypes

sys.modules[__name__] = sharedctypes
