"""The standard library's `multiprocessing.connection`, the very module."""

import sys
from multiprocessing import connection

sys.modules[__name__] = connection
