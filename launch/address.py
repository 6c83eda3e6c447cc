"""python -m launch.address, as the scripts of jobs call it that were queued by version 0.1: launch.slurm.address now.

Goes with the next release.
"""

import sys

from .slurm.address import main

if __name__ == "__main__":
    sys.exit(main())
