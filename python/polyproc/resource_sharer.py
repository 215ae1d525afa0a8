"""The module `multiprocessing.resource_sharer` of the standard library, under this name."""

import sys
from multiprocessing import resource_sharer

sys.modules[__name__] = resource_sharer
