"""Runs the test suites of libraries that are built on `multiprocessing`, without and with `polyproc.install()`.

    pip install . && python tests/libraries.py [LIBRARY]...

Each suite is that of the installed version, from its source distribution (mpire's contains none). Tests that pass without and
fail with polyproc are printed, and make the exit code 1. Install polyproc as a regular package: coverage measures any code
that is not installed. Each library takes some minutes.
"""

import argparse
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree

# The packages to install, and the tests: paths in the sources, or module names.
LIBRARIES = {
    "pebble": (["pebble"], ["test"]),
    "joblib": (["joblib", "numpy"], ["--pyargs", "joblib.test.test_parallel", "joblib.test.test_memmapping"]),
    "loky": (["loky", "psutil", "numpy"], ["tests"]),
    "coverage": (
        ["coverage", "flaky", "hypothesis", "pytest-xdist", "unittest-mixins"],
        ["tests/test_concurrency.py", "-k", "ultiproc"],
    ),
}
# Tests that fail, each with the reason.
KNOWN = {
    "pebble": {"DeadlockOn": "wants the pool to break when a worker dies that holds the lock of its pipe: ours is taken over"},
    "joblib": {"interactively_defined_functions[multiprocessing]": "functions of `-c`, by its own pickles, need `fork`"},
    "loky": {"test_sync_object_handling": "expects a pipe between a process and its resource tracker: ours is a socket"},
    "coverage": {"bootstrap_error": "looks for `_bootstrap` in a stack from which it leaves out what is installed"},
}
# Seconds after which a suite counts as hung.
PATIENCE = 1800


def get_sources(name, folder):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "pytest", "pytest-timeout", *LIBRARIES[name][0]], check=True)
    version = importlib.metadata.version(name)
    command = [*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, f"{name}=={version}"], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder)
    return next(path for path in folder.iterdir() if path.is_dir()), version


def run(name, sources, folder, is_installed):
    """Runs a suite. Returns {id: whether the test passed}, without skipped tests."""
    place = folder / ("with" if is_installed else "without")
    place.mkdir()
    if is_installed:
        # Every interpreter that the tests start imports this.
        (place / "sitecustomize.py").write_text("import polyproc\npolyproc.install()\n")
    out = place / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "120", f"--junit-xml={out}"]
    search = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    env = {**os.environ, "PYTHONPATH": str(place), "PATH": search}
    with open(place / "log", "w") as log:
        try:
            subprocess.run(
                [*command, *LIBRARIES[name][1]], cwd=sources, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            print(f"  the suite did not end in {PATIENCE} s", flush=True)
            return {}
    if not out.exists():
        print((place / "log").read_text()[-2000:], flush=True)
        return {}
    results = {}
    for case in xml.etree.ElementTree.parse(out).iter("testcase"):
        if case.find("skipped") is None:
            is_ok = case.find("failure") is None and case.find("error") is None
            results[f"{case.get('classname')}::{case.get('name')}"] = is_ok
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(LIBRARIES))
    options = parser.parse_args()
    unknown = set(options.libraries) - set(LIBRARIES)
    if unknown:
        parser.error(f"no library {', '.join(sorted(unknown))}; there are {', '.join(LIBRARIES)}")
    failed = 0
    for name in options.libraries or LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "sources").mkdir()
            sources, version = get_sources(name, folder / "sources")
            without, installed = (run(name, sources, folder, is_installed) for is_installed in (False, True))
            broken = sorted(test for test, is_ok in without.items() if is_ok and not installed.get(test))
            for part, reason in KNOWN.get(name, {}).items():
                known = [test for test in broken if part in test]
                broken = [test for test in broken if part not in test]
                print(f"  {len(known)} fail that are known: {reason}", flush=True)
            print(f"{name} {version}: {sum(without.values())} pass without, {sum(installed.values())} with polyproc.install()")
            for test in broken:
                print(f"  fails: {test}")
            failed += len(broken) + (not without)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
