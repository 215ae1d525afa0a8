"""Raises `ImportError`: polyproc has no Windows port yet."""

__all__ = ["Popen"]

raise ImportError("polyproc runs on Linux only")
