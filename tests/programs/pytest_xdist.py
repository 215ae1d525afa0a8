# needs: xdist
import os
import subprocess
import sys
import tempfile

TESTS = """
import multiprocessing
import pytest

def double(n):
    return n * 2

@pytest.mark.parametrize("n", range(6))
def test_pool(n):
    with multiprocessing.Pool(2) as pool:
        assert pool.map(double, range(n)) == [2 * m for m in range(n)]
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "test_it.py"), "w") as file:
            file.write(TESTS)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.returncode, "6 passed" in done.stdout)
