"""The numbers of torchtune, for images without padding tiles."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.model import (
    Block,
    ClassProjection,
    TiledTokenPositionalEmbedding,
    TilePositionalEmbedding,
    TokenPositionalEmbedding,
    VisionTransformer,
)

RENAMED = {
    "conv.weight": "patch_embed.weight",
    "token_pos_embedding.positional_embedding": "token_pos_embedding.local",
    "token_pos_embedding.local_token_positional_embedding": "token_pos_embedding.local",
    "token_pos_embedding.global_token_positional_embedding": "token_pos_embedding.global_",
}
RENAMED_PARTS = {
    ".attn.output_proj.": ".attn.proj.",
    ".sa_norm.": ".norm1.",
    ".mlp_norm.": ".norm2.",
    ".mlp.w1.": ".mlp.fc1.",
    ".mlp.w2.": ".mlp.fc2.",
}


def ours(weights: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """torchtune's state under our names, with q, k and v fused."""
    state = {}
    for name, value in weights.items():
        if ".q_proj." in name:
            parts = [weights[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            state[name.replace(".q_proj.", ".qkv.")] = torch.from_numpy(np.concatenate(parts))
        elif ".k_proj." not in name and ".v_proj." not in name:
            name = RENAMED.get(name, name)
            for theirs, our in RENAMED_PARTS.items():
                name = name.replace(theirs, our)
            state[name] = torch.from_numpy(value)
    return state


def build(config: dict, **changed: object) -> VisionTransformer:
    width, tiles = config["embed_dim"], config["max_num_tiles"]
    grid = (config["tile_size"], config["patch_size"])
    project = config.get("output_cls_projection") and ClassProjection(width, config["cls_output_dim"])
    arguments = {
        "patch_size": config["patch_size"],
        "tile_size": config["tile_size"],
        "num_layers": config["num_layers"],
        "embed_dim": width,
        "layer": Block(
            width,
            config["num_heads"],
            4 * width,
            activation=config["activation"].lower(),
            norm_eps=1e-5,
        ),
        "token_pos_embedding": TiledTokenPositionalEmbedding(tiles, width, *grid)
        if tiles > 1
        else TokenPositionalEmbedding(width, *grid),
        "pre_tile_pos_embed": TilePositionalEmbedding(tiles, width) if tiles > 1 else None,
        "post_tile_pos_embed": TilePositionalEmbedding(tiles, width) if tiles > 1 else None,
        "cls_projection": project or None,
        "out_indices": config["out_indices"],
        "append_cls_token": config.get("append_cls_token", False),
    }
    return VisionTransformer(**(arguments | changed)).eval()


def load(data: dict, **changed: object) -> VisionTransformer:
    model = build(json.loads(str(data["config_json"])), **changed)
    weights = {k.removeprefix("weights/"): v for k, v in data.items() if k.startswith("weights/")}
    if model.cls_projection is None:
        weights.pop("cls_projection.weight", None)
    model.load_state_dict(ours(weights))
    return model


def run(model: VisionTransformer, data: dict, dtype: torch.dtype = torch.float32) -> tuple:
    images = torch.from_numpy(data["inputs/images"]).to(dtype)
    ratio = data.get("inputs/aspect_ratio")
    with torch.no_grad():
        return model.to(dtype)(images, None if ratio is None else torch.from_numpy(ratio))


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual, torch.from_numpy(expected).to(actual.dtype), atol=tolerance, rtol=tolerance
    )


def test_single_tile_equals_torchtune(golden):
    data = golden("tt_single_tile")
    x, hidden = run(load(data), data)
    close(x, data["outputs/x"])
    assert len(hidden) == 2
    for index, state in enumerate(hidden):
        close(state, data[f"outputs/hidden_{index}"])


def test_single_tile_equals_torchtune_in_float64(golden):
    data = golden("tt_single_tile")
    x, _ = run(load(data), data, torch.float64)
    close(x, data["ref64/x"], 1e-9)


def unpadded(data: dict) -> Tensor:
    ratio = torch.from_numpy(data["inputs/aspect_ratio"])
    return ratio.prod(-1)[:, 0] == data["inputs/images"].shape[2]


def test_tiled_image_without_padding_equals_torchtune(golden):
    data = golden("tt_tiled")
    whole = unpadded(data)
    assert whole.any()
    x, hidden = run(load(data), data)
    close(x[whole], data["outputs/x"][whole])
    for index, state in enumerate(hidden):
        close(state[whole], data[f"outputs/hidden_{index}"][whole])
    x, _ = run(load(data), data, torch.float64)
    close(x[whole], data["ref64/x"][whole], 1e-9)


def test_real_tiles_are_embedded_as_in_torchtune_and_padding_stays_zero(golden):
    data = golden("tt_tiled")
    seen = []
    model = load(data)
    model.token_pos_embedding.register_forward_hook(
        lambda module, args, out: seen.append((args[1].unpack(out), out.shape))
    )
    x, hidden = run(model, data)
    tiles = torch.from_numpy(data["inputs/aspect_ratio"]).prod(-1).flatten()
    real = torch.arange(x.shape[2]) < tiles[:, None]
    close(seen[0][0], data["stages/after_token_pos"][real.numpy()])
    for state in (x, *hidden):
        assert (state.flatten(0, 1)[~real] == 0).all()
        assert (state.flatten(0, 1)[real] != 0).any(-1).all()


def test_appended_class_token_equals_torchtune_and_is_what_gets_projected(golden):
    data = golden("tt_append_cls_proj")
    whole = unpadded(data)
    assert whole.any()
    x, _ = run(load(data, cls_projection=None), data)
    close(x[whole], data["outputs/append_tokens"][whole])
    x, hidden = run(load(data), data)
    # torchtune projects the first patch; the file has the projection of the class token beside it.
    close(x[whole], data["outputs/append_proj_of_last_token"].reshape(x.shape)[whole])
    close(hidden[1][whole], data["outputs/append_hidden_1"][whole])
    x, _ = run(load(data, append_cls_token=False), data)
    close(x[whole], data["outputs/prepend_proj"][whole])


@pytest.mark.parametrize("name", ["tt_single_tile", "tt_tiled"])
def test_gradients_reach_every_parameter(golden, name):
    data = golden(name)
    model = load(data).train()
    ratio = data.get("inputs/aspect_ratio")
    x, _ = model(torch.from_numpy(data["inputs/images"]), None if ratio is None else torch.from_numpy(ratio))
    x.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
