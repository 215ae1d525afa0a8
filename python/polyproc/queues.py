"""The standard library's `multiprocessing.queues`, the very module."""

import sys
from multiprocessing import queues

sys.modules[__name__] = queues
