"""Counts risky constructs in Python code below some folders, with one parser per worker process.

    python examples/python/ast_audit.py [FOLDER]... [--workers N] [--timeout SECONDS] [--memory MIB] [--json]

Without a folder it reads the interpreter's own library and site-packages. Some of their files are deliberately not valid
Python. The report lists them, as it lists files that take too long or too much memory, or that crash the parser.
"""

import argparse
import ast
import collections
import json
import os
import pathlib
import sys
import sysconfig
import time
import warnings

import polyproc
from polyproc.pool import PoolError

# Calls that run text as code, load data as code, or pass text to a shell.
RISKY = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"}
COLUMNS = ("files", "lines", "functions", "classes", "bare_excepts", "risky_calls", "asserts")


class Counter(ast.NodeVisitor):
    """Counts the constructs in one file."""

    def __init__(self):
        self.counts = collections.Counter()

    def visit_FunctionDef(self, node):
        self.counts["functions"] += 1
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self.counts["classes"] += 1
        self.generic_visit(node)

    def visit_ExceptHandler(self, node):
        self.counts["bare_excepts"] += node.type is None
        self.generic_visit(node)

    def visit_Call(self, node):
        self.counts["risky_calls"] += name_of(node.func) in RISKY
        self.generic_visit(node)

    def visit_Assert(self, node):
        self.counts["asserts"] += 1
        self.generic_visit(node)


def name_of(function):
    """Returns the called name, with its module if that is a single name; otherwise None."""
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return None


def audit(path):
    """Returns the counts of one file, and its error or None."""
    start = time.perf_counter()
    source = pathlib.Path(path).read_bytes()
    counter = Counter()
    counter.counts.update(files=1, lines=source.count(b"\n"))
    problem = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counter.visit(ast.parse(source, path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = f"{type(error).__name__}: {error}"
    counter.counts["seconds"] = time.perf_counter() - start
    return counter.counts, problem


def files_below(folders):
    """Yields the Python files below some folders, each with its package: the first part of its relative path."""
    for folder in folders:
        for directory, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if name not in ("__pycache__", "site-packages"))
            for name in sorted(files):
                if name.endswith(".py"):
                    path = os.path.join(directory, name)
                    yield path, os.path.relpath(path, folder).split(os.sep)[0].removesuffix(".py")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="default: the library and site-packages")
    processors = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=processors, help="worker processes; default: one per processor")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="how long one file may take; default: 60")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="memory of a worker; default: 2048")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    paths = sysconfig.get_paths()
    options.folders = options.folders or list(dict.fromkeys([paths["stdlib"], paths["purelib"], paths["platlib"]]))
    for folder in options.folders:
        if not os.path.isdir(folder):
            parser.error(f"{folder!r} is no folder")
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    if options.timeout <= 0 or options.memory <= 0:
        parser.error("--timeout and --memory must be above 0")
    return options


def main():
    options = parse_arguments()
    start = time.perf_counter()
    packages, problems = collections.defaultdict(collections.Counter), {}
    handed_out = collections.deque()

    def paths():
        for path, package in files_below(options.folders):
            handed_out.append((path, package))
            yield path

    with polyproc.Pool(options.workers, memory_limit=options.memory << 20) as pool:
        results = pool.imap(audit, paths(), timeout=options.timeout)
        while True:
            try:
                counts, problem = next(results)
            except StopIteration:
                break
            except (PoolError, OSError) as error:
                counts, problem = {"files": 1}, str(error)
            path, package = handed_out.popleft()
            packages[package].update(counts)
            if problem:
                problems[path] = problem
    seconds = time.perf_counter() - start
    if options.json:
        json.dump({"packages": packages, "problems": problems, "seconds": seconds}, sys.stdout, indent=1)
        return
    packages["total"] = sum(packages.values(), collections.Counter())
    width = max(map(len, packages))
    print(f"{'':{width}}" + "".join(f"{name:>14}" for name in COLUMNS))
    for package, counts in packages.items():
        print(f"{package:{width}}" + "".join(f"{counts[name]:14}" for name in COLUMNS))
    print(f"\n{options.workers} workers, {seconds:.2f} s; {packages['total']['seconds']:.2f} s of work\n")
    print(f"{len(problems)} files could not be parsed:")
    for path, problem in problems.items():
        print(f"  {path}: {problem}")


if __name__ == "__main__":
    main()
