"""Runs the interpreter's own tests of `multiprocessing` against polyproc.

    python tests/conformance/lane.py [--method fork|spawn|forkserver]... [--only TEXT] [--module multiprocessing]

Needs an interpreter that has its `test` package. The tests are read from it, the name of the module is replaced, and each
runs in a process of its own family, bounded in time. A test that fails is run once more against the standard library: what
fails there as well does not count. What is left must stand in `known.txt`, each with its reason; and what stands there must
fail, so that the list stays short.
"""

import argparse
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
# Seconds that one test may take: the slowest takes some 20, and on a loaded machine threads may have begun sleeps of
# `support.LONG_TIMEOUT`, here 60, that nothing can end.
PATIENCE = 240


def write_tests(folder, module):
    """The tests with the module's name replaced, as modules that child processes can import."""
    origin = pathlib.Path(importlib.util.find_spec("test._test_multiprocessing").origin)
    for program in origin.parent.glob("mp_*.py"):
        text = re.sub(r"(?<![\w.])multiprocessing\b", module, program.read_text())
        (folder / program.name).write_text(text)
    source = origin.read_text()
    source = source.replace("test._test_multiprocessing", "_tests_of_all")
    source = source.replace("test.test_multiprocessing_", "tests_of_")
    # Not `_multiprocessing`, which is the interpreter's own extension.
    source = re.sub(r"(?<![\w.])multiprocessing\b(?!\.py)", module, source)
    # Where a logger and a folder bear the name, it is that of `multiprocessing.util`, which both share.
    source = re.sub(rf"getLogger\((['\"]){module}['\"]\)", "getLogger('multiprocessing')", source)
    source = source.replace(f"unclosed running {module} pool", "unclosed running multiprocessing pool")
    (folder / "_tests_of_all.py").write_text(source)
    # Some start an interpreter without its site-packages.
    if importlib.util.find_spec(module).origin and not (folder / module).exists():
        (folder / module).symlink_to(pathlib.Path(importlib.util.find_spec(module).origin).parent)
    for method in METHODS:
        text = f"import _tests_of_all\n_tests_of_all.install_tests_in_module_dict(globals(), {method!r})\n"
        (folder / f"tests_of_{method}.py").write_text(text)


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

name, wanted = sys.argv[1], set(json.loads(sys.argv[2]) or [])
def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test
tests = list(flatten(unittest.defaultTestLoader.loadTestsFromName(name)))
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
    """One process that runs tests, and all that it starts."""

    def __init__(self, folder, name, wanted, what="run"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
        self.log = tempfile.TemporaryFile()
        command = [sys.executable, "-W", "ignore", "-c", RUNNER, name, json.dumps(wanted), what]
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
        """What the tests say, one by one; `None` when they said nothing for too long, and when they have ended."""
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


def run_tests(folder, name, wanted):
    """How each test ended: {id: (how, text)}."""
    results = {}
    left = list(wanted)
    while left:
        run = Run(folder, name, left)
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
            break  # the rest were fixtures that failed: their classes are among the results
    for test in left:
        results.setdefault(test, ("failed", "its class or module could not be set up"))
    return {test: results[test] for test in wanted}


def known_failures(version):
    """{method: {test: reason}} of `known.txt`: lines `METHODS VERSIONS TEST  reason`, `*` for all."""
    known = {method: {} for method in METHODS}
    for line in (HERE / "known.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        methods, versions, test, reason = line.split(None, 3)
        if versions == "*" or version in versions.split(","):
            for method in METHODS if methods == "*" else methods.split(","):
                known[method][test] = reason
    return known


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--only", default="", help="only tests with this text in their names")
    parser.add_argument("--module", default="polyproc")
    parser.add_argument("--verbose", action="store_true", help="print why tests failed")
    options = parser.parse_args()
    version = "{}.{}".format(*sys.version_info)
    known = known_failures(version)
    passed = failed = skipped = 0
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pathlib.Path(folder, "ours"), pathlib.Path(folder, "theirs")
        for place, module in ((ours, options.module), (theirs, "multiprocessing")):
            place.mkdir()
            write_tests(place, module)
        for method in options.method or METHODS:
            name = f"tests_of_{method}"
            listing = Run(ours, name, [], "list")
            tests = next((message[1] for message in listing.messages()), None)
            log = listing.end()
            if tests is None:
                sys.exit(f"the tests could not be loaded:\n{log}")
            tests = [test for test in tests if options.only in test]
            results = run_tests(ours, name, tests)
            bad = [test for test, (how, _) in results.items() if how not in ("passed", "skipped")]
            again = run_tests(theirs, name, bad) if options.module != "multiprocessing" else {}
            fair = [test for test in bad if again.get(test, ("passed",))[0] == "passed"]
            ok = sum(how == "passed" for how, _ in results.values())
            skips = sum(how == "skipped" for how, _ in results.values())
            print(
                f"{method}, Python {version}: {ok} passed, {len(fair)} failed that the standard library passes, "
                f"{len(bad) - len(fair)} failed there too, {skips} skipped "
                f"({100 * ok / max(ok + len(fair), 1):.1f} % of what the standard library passes)",
                flush=True,
            )
            passed, skipped = passed + ok, skipped + skips
            for test in fair:
                short = test.removeprefix(name + ".")
                reason = known[method].get(short)
                how, text = results[test]
                print(f"  {how}: {short}: {reason or 'NOT KNOWN'}", flush=True)
                if options.verbose or reason is None:
                    print("    " + text.strip()[-2000:].replace("\n", "\n    "), flush=True)
                failed += reason is None
            for test in known[method]:
                if results.get(f"{name}.{test}", ("",))[0] == "passed":
                    print(f"  passes, though known.txt says that it fails: {test}", flush=True)
                    failed += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
