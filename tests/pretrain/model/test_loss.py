"""Labels and results of a Classifier as those of transformers' ForImageClassification."""

from __future__ import annotations

import pytest
import torch

from pretrain.model.loss import label_loss


def test_labels_give_the_loss_of_their_kind(small) -> None:
    model = small(noise=0.1)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    labels = torch.tensor([0, 4, 2])
    loss, again = model(images, labels)
    assert torch.equal(again, logits)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[range(3), labels].mean())
    hot = torch.eye(5)[labels]
    several = model(images, hot, return_dict=True)
    chances = logits.sigmoid()
    wanted = -(hot * chances.log() + (1 - hot) * (1 - chances).log()).mean()
    torch.testing.assert_close(several.loss, wanted)
    assert several["logits"] is several.logits is several[1] and torch.equal(several.logits, logits)
    assert list(model(images, return_dict=True)) == ["logits"]


def test_one_output_is_a_number() -> None:
    outputs, wanted = torch.tensor([[1.0], [3.0]]), torch.tensor(2.5)
    for labels in (torch.tensor([2, 1]), torch.tensor([[2.0], [1.0]])):
        torch.testing.assert_close(label_loss(outputs, labels), wanted)


@pytest.mark.parametrize("labels", [torch.zeros(2, dtype=torch.int64), torch.zeros(3, 4), torch.zeros(3)])
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"do not fit logits of \(3, 5\)"):
        label_loss(torch.zeros(3, 5), labels)


def test_images_of_another_size_interpolate_the_positions(small) -> None:
    model = small(noise=0.1)
    images = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    wanted = model.resized((40, 48), "bicubic_centers")(images)
    assert torch.equal(model(images, interpolate_pos_encoding=True), wanted)
    with pytest.raises(ValueError, match="tiles are 40x48"):
        model(images)
