"""torchtune's weights in our VisionTransformer: what is ours alone. See test_golden for its numbers."""

import json

import pytest
import torch
from golden import under
from references.made import made

from finetune.formats import load_peer


@pytest.fixture
def torchtunes():
    def load(name):
        data = made(name)
        model = load_peer("torchtune", json.loads(str(data["config_json"])), under(data, "weights/"))
        ratio = data.get("inputs/aspect_ratio")
        images = torch.from_numpy(data["inputs/images"])
        return model, images, None if ratio is None else torch.from_numpy(ratio)

    return load


def test_padding_tiles_stay_zero(torchtunes):
    model, images, ratio = torchtunes("tt_tiled")
    x, hidden = model(images, ratio)
    real = torch.arange(x.shape[2]) < ratio.prod(-1).flatten()[:, None]
    assert not real.all()
    for state in (x, *hidden):
        assert (state.flatten(0, 1)[~real] == 0).all()
        assert (state.flatten(0, 1)[real] != 0).any(-1).all()


@pytest.mark.parametrize("name", ["tt_single_tile", "tt_tiled", "tt_append_cls_proj"])
def test_gradients_reach_every_parameter(torchtunes, name):
    model, images, ratio = torchtunes(name)
    x, _ = model.train()(images, ratio)
    x.square().sum().backward()
    unseen = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # What is added to patches behind the last layer does not reach the class token that is projected.
    assert unseen == []
