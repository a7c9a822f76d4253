"""`python -m benchmarks.suite`: the comparisons that the library is judged by."""

import sys

from benchmarks.program import run_program
from benchmarks.suite import command

if __name__ == "__main__":
    sys.exit(run_program("benchmarks.suite", command))
