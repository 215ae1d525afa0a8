"""The module `multiprocessing.process` of the standard library, under this name."""

import sys
from multiprocessing import process

sys.modules[__name__] = process
