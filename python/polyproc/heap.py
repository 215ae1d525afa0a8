"""The module `multiprocessing.heap` of the standard library, under this name."""

import sys
from multiprocessing import heap

sys.modules[__name__] = heap
