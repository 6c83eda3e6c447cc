"""python -m launch.verdict, as the scripts of jobs call it that were queued by version 0.1: launch.slurm.requeue now.

Goes with the next release.
"""

import sys

from .slurm.requeue import main

if __name__ == "__main__":
    sys.exit(main())
