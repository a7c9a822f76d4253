"""The command line, with a log of samples and a fault that happens on the way; run by the tests."""

import json
import os
import sys

import harm

from metaformer.cli import main

if __name__ == "__main__":
    harm.log_samples(os.environ["MF_SAMPLES"])
    harm.arm(json.loads(os.environ.get("MF_FAULT", "{}")))
    sys.exit(main(sys.argv[1:]))
