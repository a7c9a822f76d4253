"""`python -m benchmarks.loading`: data loaders beside each other."""

import sys

from benchmarks.loading import command
from benchmarks.program import run_program

if __name__ == "__main__":
    sys.exit(run_program("benchmarks.loading", command))
