"""The module `multiprocessing.util` of the standard library, under this name."""

import sys
from multiprocessing import util

sys.modules[__name__] = util
