from multiprocessing import context as _standard
from multiprocessing.process import active_children as active_children
from multiprocessing.process import current_process as current_process
from multiprocessing.process import parent_process as parent_process

from . import context as context
from .context import Process as Process
from .context import StartError as StartError
from .executor import ProcessPoolExecutor as ProcessPoolExecutor
from .pool import NoWorkers as NoWorkers
from .pool import OutOfMemory as OutOfMemory
from .pool import PoolError as PoolError
from .pool import PoolTerminated as PoolTerminated
from .pool import TaskCancelled as TaskCancelled
from .pool import TaskExited as TaskExited
from .pool import TaskTimeout as TaskTimeout
from .pool import WorkerLost as WorkerLost
from .queues import MemoryBudget as MemoryBudget
from .queues import OutOfSpace as OutOfSpace
from .queues import get_memory_budget as get_memory_budget
from .queues import set_memory_budget as set_memory_budget

AuthenticationError = _standard.AuthenticationError
BufferTooShort = _standard.BufferTooShort
ProcessError = _standard.ProcessError
TimeoutError = _standard.TimeoutError

Array = context._default_context.Array
Barrier = context._default_context.Barrier
BoundedSemaphore = context._default_context.BoundedSemaphore
Condition = context._default_context.Condition
Event = context._default_context.Event
JoinableQueue = context._default_context.JoinableQueue
Lock = context._default_context.Lock
Manager = context._default_context.Manager
Pipe = context._default_context.Pipe
Pool = context._default_context.Pool
Queue = context._default_context.Queue
RLock = context._default_context.RLock
RawArray = context._default_context.RawArray
RawValue = context._default_context.RawValue
Semaphore = context._default_context.Semaphore
SimpleQueue = context._default_context.SimpleQueue
Value = context._default_context.Value
allow_connection_pickling = context._default_context.allow_connection_pickling
freeze_support = context._default_context.freeze_support
cpu_count = context._default_context.cpu_count
get_all_start_methods = context._default_context.get_all_start_methods
get_context = context._default_context.get_context
get_logger = context._default_context.get_logger
get_start_method = context._default_context.get_start_method
log_to_stderr = context._default_context.log_to_stderr
reducer = context._default_context.reducer
set_executable = context._default_context.set_executable
set_forkserver_preload = context._default_context.set_forkserver_preload
set_start_method = context._default_context.set_start_method

SUBDEBUG: int
SUBWARNING: int

def install() -> None: ...
