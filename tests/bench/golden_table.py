"""How far our numbers are from the peers': one row for each reference file.

    python tests/bench/golden_table.py [--all] FOLDER

FOLDER holds the reference files; --all prints every array.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden import NAMES, compare  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="The largest difference to each reference file.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--all", action="store_true", help="one row for each array")
    given = parser.parse_args()
    print(f"{'file':<24}{'arrays':>8}{'max |difference| fp32':>24}{'fp64':>12}")
    for name in NAMES:
        found = list(compare(given.folder, name))
        for comparison in found if given.all else ():
            print(f"  {comparison.what:<58}{comparison.difference:>10.1e}")
        worst = {}
        for comparison in found:
            precision = "fp64" if comparison.what.startswith("ref64/") else "fp32"
            worst[precision] = max(worst.get(precision, 0.0), comparison.difference)
        double = f"{worst['fp64']:.1e}" if "fp64" in worst else "-"
        print(f"{name:<24}{len(found):>8}{worst['fp32']:>24.1e}{double:>12}")


if __name__ == "__main__":
    main()
