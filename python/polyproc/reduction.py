"""The module `multiprocessing.reduction` of the standard library, under this name."""

import sys
from multiprocessing import reduction

sys.modules[__name__] = reduction
