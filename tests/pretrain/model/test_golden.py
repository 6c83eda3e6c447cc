"""The numbers of torchtune, transformers, timm, Google's code and scipy, array by array.

`python tests/bench/golden_table.py FOLDER` prints the differences.
"""

import pytest
from golden import NAMES, compare


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_peers(shared, name):
    found = list(compare(shared("golden"), name))
    assert len(found) >= 4
    for comparison in found:
        comparison.check()
