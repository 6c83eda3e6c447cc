"""python -m pretrain, with compiled blocks but without a C++ compiler; ends if a block is compiled twice."""

import torch

from pretrain.__main__ import main
from pretrain.engine import blocks

blocks.BACKEND = "aot_eager"
torch._dynamo.config.error_on_recompile = True
main()
