"""The standard library's `multiprocessing.reduction`, the very module."""

import sys
from multiprocessing import reduction

sys.modules[__name__] = reduction
