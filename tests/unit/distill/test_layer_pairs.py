"""Which layers belong together."""

from kdscale.distill.layer_losses import matching_layer


def test_layers_match_by_depth_and_the_last_is_with_the_last() -> None:
    assert [matching_layer(i, 3, 12) for i in range(3)] == [3, 7, 11]
    assert [matching_layer(i, 4, 4) for i in range(4)] == [0, 1, 2, 3]
    assert [matching_layer(i, 3, 2) for i in range(3)] == [0, 0, 1]
    assert matching_layer(0, 1, 30) == 29
