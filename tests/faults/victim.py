"""The command line, with a log of samples and a fault that happens on the way; run by the tests."""

import json
import os
import sys

import harm

from metaformer.cli import main


def run(words: list[str]) -> int:
    """Do what the words say, and what the environment says is to happen to it."""
    harm.log_samples(os.environ["MF_SAMPLES"])
    harm.arm(json.loads(os.environ.get("MF_FAULT", "{}")))
    return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
