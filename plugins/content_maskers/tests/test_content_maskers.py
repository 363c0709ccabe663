import flipkit_content_maskers as plugin
import numpy as np
import pytest
from flipkit_content_maskers import ClusterMasker, EntropyMasker

import flipkit
from flipkit import testing


def checks():
    for masker in (ClusterMasker, EntropyMasker):
        for check in testing.check_masker(masker):
            marks = pytest.mark.slow if check.slow else ()
            yield pytest.param(check, id=f"{masker.__name__}: {check}", marks=marks)


@pytest.mark.parametrize("check", list(checks()))
def test_it_does_what_a_masker_must(check):
    check()


def kept(masker, x, keep, grid=(4, 4)):
    """Bool (batch, patches): what is kept."""
    ids = np.asarray(masker(x, keep=keep, grid=grid, seed=flipkit.Seed(0)))
    mask = np.zeros(x.shape[:2], bool)
    np.put_along_axis(mask, ids, True, axis=1)
    return mask


def test_a_cluster_goes_as_a_whole():
    """Four kinds of patches, four of each: dropping four drops one kind, the anchor's."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(40, 200, (4, 48))
    kind_of = rng.permuted(np.tile(np.arange(16) % 4, (64, 1)), axis=1)
    x = (kinds[kind_of] + rng.integers(-3, 4, (64, 16, 48))).astype("uint8")
    mask = kept(ClusterMasker(anchors=1 / 16), x, 12)
    for row, kinds_of_row in zip(mask, kind_of, strict=True):
        assert len({*kinds_of_row[~row]}) == 1
    dropped = [kinds_of_row[~row][0] for row, kinds_of_row in zip(mask, kind_of, strict=True)]
    assert {*dropped} == {0, 1, 2, 3}


def test_clusters_are_those_of_the_published_rule():
    """Against NumPy: whatever lies within the distance that leaves `keep` is dropped, nothing else."""
    x = np.random.default_rng(1).integers(0, 256, (32, 16, 48)).astype("uint8")
    mask = kept(ClusterMasker(anchors=0.1), x, 8)
    y = x - x.mean(axis=2, keepdims=True)
    y /= np.linalg.norm(y, axis=2, keepdims=True)
    cosines = np.einsum("bip,bjp->bij", y, y)
    for row, likeness in zip(mask, cosines, strict=True):
        pairs = [(a, b) for a in np.flatnonzero(~row) for b in np.flatnonzero(~row) if a < b]
        # Some pair of dropped patches, as anchors, has all others dropped nearer than all kept.
        assert any(
            likeness[[a, b]].max(axis=0)[~row].min()
            > likeness[[a, b]].max(axis=0)[row].max() - 2e-4
            for a, b in pairs
        )


def distances(x, anchors):
    """Float (patches,): to the nearest anchor. E-CLIP drops whatever lies within a distance of one."""
    y = x - x.mean(axis=1, keepdims=True)
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-3)
    return (1 - y[anchors] @ y.T).min(axis=0)


def test_on_pictures_the_published_rule_with_the_same_anchors_drops_the_same():
    """At the distance that leaves as many, it agrees about all but 2 % of the patches, at the border."""
    shapes = flipkit.CaptionedShapes("test", 24, image_size=64)
    images = np.stack([shapes[i]["image"] for i in range(24)])
    x = np.asarray(flipkit.layers.patchify(images, 8))
    mask = kept(ClusterMasker(anchors=0.05), x, 32, (8, 8))
    draws = np.asarray(flipkit.Seed(0).uniform((24, 128)))
    differing = 0
    for pixels, row, draw in zip(x.astype("float64"), mask, draws, strict=True):
        anchors = np.argsort(draw[:64])[:3]
        nearest = distances(pixels, anchors)
        choices = (nearest > distance for distance in np.linspace(0, 2, 4_001))
        left = min(choices, key=lambda left: abs(left.sum() - 32))
        differing += (left != row).sum()
        assert not row[anchors].any() or pixels[anchors].std(axis=1).min() < 1e-3
    assert differing / mask.size <= 0.02


def test_pictures_of_one_colour_are_no_trouble():
    mask = kept(ClusterMasker(), np.full((8, 16, 48), 255, "uint8"), 8)
    assert (mask.sum(axis=1) == 8).all()
    assert len({row.tobytes() for row in mask}) > 1


def test_entropy_is_that_of_the_histogram():
    x = np.zeros((1, 3, 48), "uint8")
    x[0, 1, 24:] = 200  # half dark, half bright: one bit
    x[0, 2] = np.repeat(np.arange(16) * 16, 3)  # every level once: four bits
    np.testing.assert_allclose(EntropyMasker().entropy(x), [[0, 1, 4]], atol=1e-5)


def test_a_bit_counts_as_it_says():
    x = np.zeros((20_000, 2, 48), "uint8")
    x[:, 1, 24:] = 200
    for sharpness, odds in ((0.0, 1), (1.0, 2), (2.0, 4)):
        share = kept(EntropyMasker(sharpness), x, 1, (1, 2))[:, 1].mean()
        assert share == pytest.approx(odds / (1 + odds), abs=0.015)


def test_a_share_of_anchors_out_of_range_is_refused():
    with pytest.raises(flipkit.ConfigurationError, match="Received: anchors=0"):
        ClusterMasker(0)


def test_the_names_are_offered():
    assert plugin.flipkit_maskers().keys() == {"cluster", "entropy"}
