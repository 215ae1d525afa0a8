"""The standard library's `multiprocessing.resource_tracker`, the very module."""

import sys
from multiprocessing import resource_tracker

sys.modules[__name__] = resource_tracker
