"""Now launch.slurm.requeue; jobs that were queued before that call it by this name. Goes with the next release."""

import sys

from .slurm.requeue import main

if __name__ == "__main__":
    sys.exit(main())
