"""Now launch.slurm.requeue. Jobs queued before the move still call this name; the next release removes it."""

import sys

from .slurm.requeue import main

if __name__ == "__main__":
    sys.exit(main())
