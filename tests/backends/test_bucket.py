import pytest
import torch
from torch import nn

from gmcli.backends.bucket import in_buckets, varies_in_batch_only
from gmcli.backends.component import Axis, Component

BUCKET = 4


def component(inputs: int = 1, *axes) -> Component:
    batch = Axis("batch", 1, BUCKET, BUCKET)
    example = tuple(torch.zeros(BUCKET, 3) for _ in range(inputs))
    return Component("piece", nn.Identity(), example, axes or tuple({0: batch} for _ in range(inputs)))


@pytest.mark.parametrize("rows", range(1, 10))
def test_every_call_has_the_usual_batch_and_no_row_is_lost(rows):
    seen = []

    def run(x):
        seen.append(x.clone())
        return x * 2

    x = torch.randn(rows, 3)
    assert torch.equal(in_buckets(run, component())(x), x * 2)
    assert [len(each) for each in seen] == [BUCKET] * -(-rows // BUCKET)
    filled = torch.cat(seen)
    assert torch.equal(filled[:rows], x)
    assert (filled[rows:] == x[-1]).all()


def test_several_inputs_and_outputs_stay_paired():
    run = in_buckets(lambda a, b: (a + b, (a - b)[:, :1]), component(2))
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    total, difference = run(a, b)
    assert torch.equal(total, a + b)
    assert torch.equal(difference, (a - b)[:, :1])


def test_a_whole_bucket_is_handed_on_as_it_is():
    x = torch.randn(BUCKET, 3)
    assert in_buckets(lambda y: y, component())(x) is x


@pytest.mark.parametrize("rows", [(0, 0), (3, 4), (4, 3), (1, 4)])
def test_inputs_without_rows_or_with_different_ones_are_refused(rows):
    run = in_buckets(lambda a, b: a + b, component(2))
    with pytest.raises(ValueError, match="rows"):
        run(*(torch.zeros(n, 3) for n in rows))


def test_only_one_batch_axis_makes_a_component_static():
    batch, other = Axis("batch", 1, 4, 4), Axis("other", 1, 4, 4)
    assert varies_in_batch_only(component(2))
    assert not varies_in_batch_only(component(1, {0: batch, 1: other}))
    assert not varies_in_batch_only(component(2, {0: batch}, {0: other}))
    assert not varies_in_batch_only(component(2, {0: batch}, {}))
    assert not varies_in_batch_only(component(1, {}))
