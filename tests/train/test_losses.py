import pytest
import torch
from torch.nn import functional

from gmcli.train.losses import mask_bce_loss, mask_dice_loss, next_token_loss, window_bce_loss


def test_mask_losses_are_the_originals(golden):
    values = golden("losses")
    logits, targets = values["logits"], values["targets"]
    assert float(mask_bce_loss(logits, targets, 3)) == pytest.approx(float(values["bce"]), abs=1e-6)
    assert float(mask_dice_loss(logits, targets, 3)) == pytest.approx(float(values["dice"]), abs=1e-6)
    empty = mask_dice_loss(logits, torch.zeros_like(targets), 3)
    assert float(empty) == pytest.approx(float(values["dice_empty_gt"]), abs=1e-6)


def test_no_masks_cost_nothing():
    none = torch.zeros(0, 4, 4)
    assert float(mask_bce_loss(none, none, 0)) == 0
    assert float(mask_dice_loss(none, none, 0)) == 0


def test_next_token_loss_is_the_original(golden, facts):
    """Of the teacher-forced answer, the last 24 positions' logits are stored; all of its labels lie there."""
    values = golden("llava_forward")
    labels = values["expanded_labels"].long()
    assert (labels[:, :-23] == -100).all()
    loss = next_token_loss(values["logits_last24"], labels[:, -24:])
    assert float(loss) == pytest.approx(facts["teacher_forced"]["loss"], abs=1e-5)


def test_next_token_loss_without_labels_is_zero():
    assert float(next_token_loss(torch.randn(1, 4, 7), torch.full((1, 4), -100))) == 0


def test_window_loss_is_the_mean_over_bins():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    by_hand = -(functional.logsigmoid(torch.tensor(2.0)) + functional.logsigmoid(torch.tensor(1.0))) / 2
    assert float(window_bce_loss(logits, targets)) == pytest.approx(float(by_hand), abs=1e-6)


def test_losses_are_computed_in_float32():
    logits, targets = torch.randn(2, 30, 30).bfloat16(), torch.ones(2, 30, 30)
    assert mask_bce_loss(logits, targets, 2).dtype == torch.float32
    assert mask_dice_loss(logits, targets, 2).dtype == torch.float32
