"""Runs the interpreter's own tests of `multiprocessing` and `concurrent.futures` against polyproc.

    python tests/conformance/lane.py [--lane NAME]... [--only TEXT] [--verbose]

| lane | what runs |
|---|---|
| fork, spawn, forkserver | the tests of that start method, with the name of the module replaced in their text |
| installed-fork, ... | the same, unchanged, in an interpreter that called `polyproc.install()` |
| installed-others | there, too: `test_multiprocessing_main_handling`, `test_concurrent_futures`, the queues of `test_logging` |
| executor | `test_concurrent_futures` with `polyproc.ProcessPoolExecutor` instead of the standard one |

The last lane runs only if it is named: many of its tests expect an executor that breaks permanently, or use private parts of
the standard one.

Needs an interpreter with its `test` package. The tests run in a session of their own, each bounded in time. A test that fails
runs again against the standard library; if it fails there as well, it does not count. `known.txt` must list every other
failure with its reason. A test that is listed there must fail, so that the list stays short.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
METHODS = ("forkserver", "spawn", "fork")
LANES = (*METHODS, *(f"installed-{method}" for method in METHODS), "installed-others")
# Maximum time of one test in seconds: the slowest takes about 20 s, and on a loaded machine threads may have begun sleeps of
# `support.LONG_TIMEOUT`, here 60 s, that cannot be interrupted.
PATIENCE = 240


# The modules of the other lanes, and a pattern for the names of their tests that concern processes.
OTHERS = {
    "installed-others": (
        ["test.test_multiprocessing_main_handling", "test.test_concurrent_futures", "test.test_logging"],
        "main_handling|Process|Fork|Spawn|Queue|multiprocess",
    ),
    "executor": (["test.test_concurrent_futures"], "Process|Fork|Spawn"),
}
INSTALL = "import polyproc\npolyproc.install()\n"
EXECUTOR = """import concurrent.futures
import polyproc
concurrent.futures.ProcessPoolExecutor = polyproc.ProcessPoolExecutor
"""


def write_replaced(folder, method, module):
    """Writes the tests with the module's name replaced, as modules that child processes can import. Returns the name of the
    module for a start method."""
    origin = pathlib.Path(importlib.util.find_spec("test._test_multiprocessing").origin)
    for program in origin.parent.glob("mp_*.py"):
        text = re.sub(r"(?<![\w.])multiprocessing\b", module, program.read_text())
        (folder / program.name).write_text(text)
    source = origin.read_text()
    source = source.replace("test._test_multiprocessing", "_tests_of_all")
    source = source.replace("test.test_multiprocessing_", "tests_of_")
    # Not `_multiprocessing`, which is the interpreter's own extension.
    source = re.sub(r"(?<![\w.])multiprocessing\b(?!\.py)", module, source)
    # Both modules use the logger of `multiprocessing.util`, and the same text of this warning.
    source = re.sub(rf"getLogger\((['\"]){module}['\"]\)", "getLogger('multiprocessing')", source)
    source = source.replace(f"unclosed running {module} pool", "unclosed running multiprocessing pool")
    (folder / "_tests_of_all.py").write_text(source)
    # Some tests start an interpreter without site-packages.
    if importlib.util.find_spec(module).origin and not (folder / module).exists():
        (folder / module).symlink_to(pathlib.Path(importlib.util.find_spec(module).origin).parent)
    for each in METHODS:  # some tests start tests of other methods
        text = f"import _tests_of_all\n_tests_of_all.install_tests_in_module_dict(globals(), {each!r})\n"
        (folder / f"tests_of_{each}.py").write_text(text)
    return f"tests_of_{method}"


def find_or_write_tests_of(method, folder):
    """Returns the module of the tests of a start method; writes it if the installation lacks it."""
    name = f"test_multiprocessing_{method}"
    if importlib.util.find_spec(f"test.{name}"):
        return f"test.{name}"
    text = f"import test._test_multiprocessing as tests\ntests.install_tests_in_module_dict(globals(), {method!r})\n"
    (folder / f"{name}.py").write_text(text)
    return name


def prepare(lane, folder, is_ours):
    """Writes the files of a lane into a folder for the search path, for polyproc or for the standard library. Returns the
    names of its test modules, and a pattern that selects tests in them."""
    if lane in METHODS:
        return [write_replaced(folder, lane, "polyproc" if is_ours else "multiprocessing")], ""
    if is_ours:
        # Every interpreter that is started there imports this.
        (folder / "sitecustomize.py").write_text(EXECUTOR if lane == "executor" else INSTALL)
    if lane in OTHERS:
        names, pattern = OTHERS[lane]
        return [name for name in names if importlib.util.find_spec(name)], pattern
    return [find_or_write_tests_of(lane.removeprefix("installed-"), folder)], ""


RUNNER = """
import json, os, signal, sys, unittest
from test import support
support.LONG_TIMEOUT = 60.0
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored

class Result(unittest.TestResult):
    def tell(self, test, how, text=""):
        print(json.dumps([how, test.id(), text]), file=out)
    def startTest(self, test):
        super().startTest(test)
        self.seen = "passed", ""
        self.tell(test, "begins")
    def addError(self, test, error):
        super().addError(test, error)
        if not isinstance(test, unittest.TestCase):  # a fixture
            return self.tell(test, "failed", self.errors[-1][1])
        self.seen = "failed", self.errors[-1][1]
    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.seen = "failed", self.failures[-1][1]
    def addSubTest(self, test, sub, error):
        super().addSubTest(test, sub, error)
        if error is not None:
            self.seen = "failed", self._exc_info_to_string(error, sub)
    def addSkip(self, test, why):
        super().addSkip(test, why)
        if isinstance(test, unittest.TestCase):
            self.seen = "skipped", why
    def stopTest(self, test):
        super().stopTest(test)
        self.tell(test, *self.seen)

names, wanted = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test
tests = list(flatten(unittest.defaultTestLoader.loadTestsFromNames(names)))
if sys.argv[3] == "list":
    print(json.dumps(["list", [test.id() for test in tests], ""]), file=out)
else:
    support.verbose = False
    suite = unittest.TestSuite(test for test in tests if test.id() in wanted)
    suite.run(Result())
    print(json.dumps(["done", "", ""]), file=out)
out.flush()
"""


class Run:
    """A process that runs tests, with all its descendants."""

    def __init__(self, folder, names, wanted, what="run"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
        self.log = tempfile.TemporaryFile()
        command = [sys.executable, "-W", "ignore", "-c", RUNNER, json.dumps(names), json.dumps(wanted), what]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.pending = b""

    def messages(self):
        """Yields the messages of the tests. Returns after the last one, or if none arrives for `PATIENCE` seconds."""
        last = time.monotonic()
        while True:
            while b"\n" in self.pending:
                line, self.pending = self.pending.split(b"\n", 1)
                last = time.monotonic()
                yield json.loads(line)
            left = last + PATIENCE - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                return
            self.pending += more

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.seek(0)
        return self.log.read().decode(errors="replace")


def run_tests(folder, names, wanted):
    """Runs tests. Returns how each ended: {id: (how, text)}."""
    results = {}
    left = list(wanted)
    while left:
        run = Run(folder, names, left)
        current, is_done = None, False
        for how, test, text in run.messages():
            if how == "begins":
                current = test
            elif how == "done":
                is_done = True
                break
            else:
                results[test] = (how, text)
                current = None
        log = run.end()
        if current is not None:
            how = "hung" if run.process.returncode == -signal.SIGKILL else "died"
            results[current] = (how, log[-3000:])
        before = len(left)
        left = [test for test in left if test not in results]
        if is_done or len(left) == before:
            break  # the remaining tests have fixtures that failed; the results name their classes
    for test in left:
        results.setdefault(test, ("failed", "its class or module could not be set up"))
    return {test: results[test] for test in wanted}


def known_failures(lane, version):
    """Returns {pattern of tests: reason} from `known.txt`. A line is `LANES VERSIONS TEST  reason`, with patterns of lanes and
    tests; version `*` means all versions."""
    known = {}
    for line in (HERE / "known.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        lanes, versions, test, reason = line.split(None, 3)
        is_lane = any(fnmatch.fnmatch(lane, pattern) for pattern in lanes.split(","))
        if is_lane and (versions == "*" or version in versions.split(",")):
            known[test] = reason
    return known


def class_and_name(test):
    return ".".join(test.split(".")[-2:])


def reason_of(test, known):
    return next((reason for pattern, reason in known.items() if fnmatch.fnmatch(class_and_name(test), pattern)), None)


def run_lane(lane, folder, only, is_verbose):
    """Runs a lane and prints the results. Returns how many tests passed, failed unexpectedly, and were skipped."""
    version = "{}.{}".format(*sys.version_info)
    known = known_failures(lane, version)
    ours, theirs = folder / lane / "ours", folder / lane / "theirs"
    for place in (ours, theirs):
        place.mkdir(parents=True)
    names, pattern = prepare(lane, ours, is_ours=True)
    prepare(lane, theirs, is_ours=False)
    listing = Run(ours, names, [], "list")
    tests = next((message[1] for message in listing.messages()), None)
    log = listing.end()
    if tests is None:
        sys.exit(f"the tests could not be loaded:\n{log}")
    tests = [test for test in tests if re.search(pattern, test) and only in test]
    endless = [test for test in tests if (reason_of(test, known) or "").startswith("hangs:")]
    tests = [test for test in tests if test not in endless]
    results = run_tests(ours, names, tests)
    bad = [test for test, (how, _) in results.items() if how not in ("passed", "skipped")]
    again = run_tests(theirs, names, bad)
    fair = [test for test in bad if again.get(test, ("passed",))[0] == "passed"] + endless
    results.update(dict.fromkeys(endless, ("not run", "")))
    ok = sum(how == "passed" for how, _ in results.values())
    skips = sum(how == "skipped" for how, _ in results.values())
    print(
        f"{lane}, Python {version}: {ok} passed, {len(fair)} failed that the standard library passes, "
        f"{len(bad) + len(endless) - len(fair)} failed there too, {skips} skipped "
        f"({100 * ok / max(ok + len(fair), 1):.1f} % of what the standard library passes)",
        flush=True,
    )
    failed = 0
    for test in fair:
        reason = reason_of(test, known)
        how, text = results[test]
        print(f"  {how}: {class_and_name(test)}: {reason or 'NOT KNOWN'}", flush=True)
        if is_verbose or reason is None:
            print("    " + text.strip()[-2000:].replace("\n", "\n    "), flush=True)
        failed += reason is None
    ended = {pattern: set() for pattern in known}
    for test, (how, _) in results.items():
        for pattern in known:
            if fnmatch.fnmatch(class_and_name(test), pattern):
                ended[pattern].add(how)
    for pattern in [pattern for pattern, hows in ended.items() if hows == {"passed"}]:
        if known[pattern].startswith("sometimes:"):
            continue
        print(f"  passes, though known.txt says that it fails: {pattern}", flush=True)
        failed += 1
    return ok, failed, skips


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lane", action="append", choices=(*LANES, "executor"))
    parser.add_argument("--only", default="", help="only tests with this text in their names")
    parser.add_argument("--verbose", action="store_true", help="print why tests failed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = [run_lane(lane, pathlib.Path(folder), options.only, options.verbose) for lane in options.lane or LANES]
    passed, failed, skipped = (sum(column) for column in zip(*counts))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
