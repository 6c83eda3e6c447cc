"""A look inside: tokens, hidden states and attention maps are those of the forward pass."""

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import Classifier
from pretrain.model.inspection import inspect

PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture
def masked(small_config):
    torch.manual_seed(0)
    model = Classifier(
        small_config(head="linear"), tile_size=32, max_tiles=1, num_classes=5, mask_token=True, **PIXELS
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_it_is_the_forward_pass(small, tile_batch, pool, head):
    model = small(max_tiles=4, noise=0.1, pool=pool, head=head, registers=1)
    batch = tile_batch((1, 2), (1, 1), (2, 2), (1, 1))
    found = inspect(model, batch)
    torch.testing.assert_close(found.logits, model(batch), atol=1e-5, rtol=1e-5)
    last = model.head.fc2 if head == "mlp" else model.head
    torch.testing.assert_close(last(found.pooled), found.logits)
    assert len(found.hidden_states) == 3
    assert {tuple(state.shape) for state in found.hidden_states} == {tuple(found.tokens.shape)}


def test_maps_are_padded_to_the_longest_image_and_sum_to_one(small, tile_batch):
    model = small(max_tiles=4, noise=0.1)
    found = inspect(model, tile_batch((1, 2), (1, 1), (2, 2)))
    assert len(found.attentions) == 2
    for maps in found.attentions:
        assert maps.shape == (3, 4, 4 * 17, 4 * 17)
        for index, tokens in enumerate((34, 17, 68)):
            torch.testing.assert_close(maps[index, :, :tokens].sum(-1), torch.ones(4, tokens))
            assert not maps[index, :, tokens:].any()
            assert not maps[index, :, :, tokens:].any()
    alone = inspect(model, tile_batch((1, 2)))
    torch.testing.assert_close(alone.attentions[1], found.attentions[1][:1, :, :34, :34])
    torch.testing.assert_close(alone.tokens, found.tokens[:2], atol=1e-5, rtol=1e-5)


def test_masked_patches_are_the_mask_token(masked):
    images = torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(inspect(masked, images, mask).logits, inspect(masked, images).logits)
    mask[0, 5] = True
    found = inspect(masked, images, mask)
    place = masked.encoder.token_pos_embedding.local[6]
    torch.testing.assert_close(found.hidden_states[0][0, 6], masked.encoder.mask_token + place)
    assert torch.equal(found.logits[1], inspect(masked, images).logits[1])
    everything = torch.ones(2, 16, dtype=torch.bool)
    hidden = inspect(masked, images, everything).tokens
    torch.testing.assert_close(hidden[0], hidden[1])


def test_heads_can_be_left_out(masked):
    images = torch.randn(2, 3, 32, 32)
    whole = inspect(masked, images)
    assert torch.equal(inspect(masked, images, head_mask=torch.ones(4)).logits, whole.logits)
    factors = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    found = inspect(masked, images, head_mask=factors)
    assert torch.equal(found.hidden_states[1], whole.hidden_states[1])
    assert not found.attentions[1][:, 1].any()
    assert not torch.equal(found.logits, whole.logits)


def test_wrong_masks_are_refused(masked, small):
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 16\)"):
        inspect(masked, images, torch.zeros(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool"):
        inspect(masked, images, torch.zeros(2, 16))
    with pytest.raises(ValueError, match=r"mask must be bool"):
        inspect(masked, images, torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="no mask token"):
        inspect(small(), images, torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="head_mask must be"):
        inspect(masked, images, head_mask=torch.ones(3))


def test_looking_leaves_the_model_as_it_was(masked):
    images = torch.randn(2, 3, 32, 32)
    before = masked(images)
    inspect(masked, images)
    assert torch.equal(masked(images), before)
    # Nothing is kept of a forward pass, so that its attention is torch's fused one.
    calls = []
    original = F.scaled_dot_product_attention
    try:
        F.scaled_dot_product_attention = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
        masked(images)
        assert len(calls) == 2
        inspect(masked, images)
        assert len(calls) == 2
    finally:
        F.scaled_dot_product_attention = original
