"""`python -m metaformer VERB …` (and `torchrun … -m metaformer VERB …`)."""

import sys

from metaformer.cli import main

if __name__ == "__main__":
    sys.exit(main())
