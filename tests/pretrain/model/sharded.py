"""torchrun: first weights and resized tables of sharded models are those of whole ones, bit by bit."""

import torch
from torch.distributed.tensor import DTensor

from pretrain.config.schema import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from pretrain.engine.kinds import ENGINES
from pretrain.model.build import build_model
from pretrain.model.init import initialize, random_values
from pretrain.model.resize import Geometry, adapt_positions, is_position_table, stretch_positions
from pretrain.run.processes import leave, start

world = start(60)
sizes = {"embed_dim": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 48, "patch_size": 8}
config = Config(
    data=DataConfig(tile_size=32, max_tiles=3),
    model=ModelConfig(name="vit_ti16", registers=2, pool="map", layer_scale=0.1, **sizes),
    train=TrainConfig(steps=1, batch_size=world.size),
    engine=EngineConfig(kind="fsdp", precision="fp32"),
)
whole = build_model(config, 5)
initialize(whole, seed=7)
with torch.device("meta"):
    model = build_model(config, 5)
ENGINES["fsdp"](config, world, model, random_values(model, seed=7))

new = Geometry(grid=(6, 5), max_tiles=4, prefix=0)
tables = 0
for name, parameter in model.named_parameters():
    value = whole.get_parameter(name)
    assert isinstance(parameter, DTensor), name
    assert torch.equal(parameter.full_tensor(), value), name
    if is_position_table(name):
        tables += 1
        for resize in (adapt_positions, stretch_positions):
            resized = resize(name, parameter.detach(), model.geometry, new)
            assert isinstance(resized, DTensor)
            assert resized.placements == parameter.placements
            expected = resize(name, value.detach(), model.geometry, new)
            assert resized.shape == expected.shape
            assert torch.equal(resized.full_tensor(), expected), name
assert tables == 4
assert len(dict(model.named_parameters())) == len(dict(whole.named_parameters()))
print("sharded as whole", flush=True)
leave(world, 0)
