"""Which module of the package imports which."""

import ast
import pathlib

import polyproc

PACKAGE = pathlib.Path(polyproc.__file__).parent
MODULES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
# Imports inside functions that close a circle, and why. All others stand at the top.
DEFERRED = {
    "_child": "a child that runs no pool and preloads nothing starts without the two modules",
    "context": "its methods import the objects that they create, which need a context, as CPython's do",
    "_pickling": "proxies of managers are pickled in another way only once managers are used",
    "pool": "the fork hooks and the fork server are imported by the pools that use them",
    "popen_fork": "a child's first module is not needed by its parent",
    "spawn": "the resource tracker is itself a process that `spawn` starts",
}


def imports(path):
    """The modules that a module imports when it is imported, and those that its functions import."""
    at_import, deferred = set(), set()

    def names(node):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            return MODULES.intersection(found)
        return set()

    def visit(node, target):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        target |= names(node)
        is_function = isinstance(node, (ast.FunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, deferred if is_function else target)

    visit(ast.parse(path.read_text()), at_import)
    return at_import - {path.stem}, deferred - {path.stem}


GRAPH = {name: imports(PACKAGE / f"{name}.py") for name in sorted(MODULES)}


def reachable(start, edges):
    found, left = set(), [start]
    while left:
        left += (new := edges[left.pop()] - found)
        found |= new
    return found


def test_modules_import_each_other_in_no_circle_when_they_are_imported():
    edges = {name: at_import for name, (at_import, _) in GRAPH.items()}
    assert [name for name in edges if name in reachable(name, edges)] == []


def test_imports_inside_functions_that_close_a_circle_have_their_reason():
    edges = {name: at_import | deferred for name, (at_import, deferred) in GRAPH.items()}
    closing = {name for name, (_, deferred) in GRAPH.items() for other in deferred if name in reachable(other, edges)}
    assert closing == set(DEFERRED)
