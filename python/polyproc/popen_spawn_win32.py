"""There is no port to Windows yet."""

__all__ = ["Popen"]

raise ImportError("polyproc runs on Linux only")
