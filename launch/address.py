"""Now launch.slurm.address. Jobs queued before that still call this name; it goes with the next release."""

import sys

from .slurm.address import main

if __name__ == "__main__":
    sys.exit(main())
