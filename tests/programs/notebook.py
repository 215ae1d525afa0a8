# needs: nbclient, ipykernel
import os
import subprocess

import nbclient
import nbformat

CELLS = [
    "import multiprocessing\nfactor = 3",
    "class Kind:\n    def __init__(self, n):\n        self.n = n\n\ndef triple(n):\n    return Kind(n * factor)",
    "with multiprocessing.Pool(2) as pool:\n    made = pool.map(triple, range(5))\n"
    "print([thing.n for thing in made], all(isinstance(thing, Kind) for thing in made))",
    "def say():\n    print('from a process', flush=True)\n\n"
    "child = multiprocessing.Process(target=say)\nchild.start()\nchild.join()\nassert child.exitcode == 0",
    # The kernel reads the output of processes while it runs cells: it may arrive with a later cell.
    *["import time\ntime.sleep(0.2)"] * 3,
]

if __name__ == "__main__":
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute(stdout=subprocess.DEVNULL)
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    print(*texts[:3], "from a process" in "".join(texts[3:]), sep="\n")
