"""The module `multiprocessing.dummy` of the standard library, under this name."""

import sys
from multiprocessing import dummy

sys.modules[__name__] = dummy
