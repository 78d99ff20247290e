"""Heat maps: that each token's value is painted where the token lies, on a scale that a label explains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fitprune.draw.heat import COLOURS, DECADES, UNITS, heat, received, spread
from fitprune.draw.places import laid_out
from fitprune.errors import FitPruneError
from fitprune.families.protocols import View
from fitprune.stats import AttentionStats


@pytest.fixture
def stats() -> AttentionStats:
    cross, intra = torch.rand(2, 3, 8), torch.rand(2, 3, 8)
    cross[0, :, 6:] = intra[0, :, 6:] = 0
    return AttentionStats(cross, intra, torch.tensor([6, 8]), torch.tensor([5, 5]))


@pytest.fixture
def where():
    return laid_out([View(Image.new("RGB", (28, 28)), 2, 2, newlines=True)])


def test_the_product_is_of_the_other_two_and_of_this_sample_only(stats):
    for sample, tokens in enumerate((6, 8)):
        found = received(stats, sample)
        assert list(found) == list(UNITS)
        assert found["cross"].shape == (3, tokens)
        assert found["cross"] == pytest.approx(stats.cross[sample, :, :tokens].numpy())
        assert found["self"] == pytest.approx(stats.intra[sample, :, :tokens].numpy())
        assert found["product"] == pytest.approx((stats.cross * stats.intra)[sample, :, :tokens].numpy())


def test_values_lie_on_their_tokens(where):
    painted = spread(where, np.arange(1.0, 7.0))
    assert painted.shape == (28, where.canvas.width)
    for value, (box, mark) in enumerate(zip(where.boxes, where.marks, strict=True), 1):
        x0, y0, x1, y1 = box or mark
        assert (painted[y0:y1, x0:x1] == value).all()
        painted[y0:y1, x0:x1] = np.nan
    assert np.isnan(painted).all()


def test_panels_rows_and_labelled_bars(stats, where):
    figure = heat(where, stats, layers=[0, 2], title="a title")
    maps, legend = figure.subfigs
    panels = np.array(maps.axes).reshape(3, 3)
    assert [panel.get_title() for panel in panels[0]] == ["the picture", "layer 0", "layer 2"]
    assert [row[1].get_ylabel() for row in panels] == list(UNITS)
    for row, values in zip(panels, received(stats).values(), strict=True):
        for panel, layer in zip(row[1:], (0, 2), strict=True):
            (drawn,) = panel.images
            assert drawn.cmap.name == COLOURS == "cividis"
            assert np.nanmax(drawn.get_array()) == pytest.approx(values[layer].max())
            assert drawn.norm.vmax == pytest.approx(values[[0, 2]].max())
            assert drawn.norm.vmin >= 0.999 * drawn.norm.vmax / 10**DECADES
    labels = [bar.get_xlabel() for bar in legend.axes]
    assert labels == list(UNITS.values())
    assert "attention received" in labels[0]
    assert maps._suptitle.get_text() == "a title"


def test_a_scale_is_that_of_the_layers_drawn_and_spans_three_powers_of_ten_at_most(where):
    """Layer 1 has the weakest and the strongest value and is not drawn. Literal numbers, from the module's description."""
    cross = torch.full((1, 3, 6), 0.1)
    cross[0, :, 0] = torch.tensor([0.4, 1.0, 0.2])
    cross[0, :, 1] = torch.tensor([0.002, 0.0007, 0.1])  # within three powers of ten of 0.4
    intra = torch.full((1, 3, 6), 0.5)
    intra[0, :, 1] = torch.tensor([0.0, 0.001, 1e-6])  # beyond three powers of ten of 0.5
    stats = AttentionStats(cross, intra, torch.tensor([6]), torch.tensor([5]))
    figure = heat(where, stats, layers=[0, 2])
    rows = np.array(figure.subfigs[0].axes).reshape(3, 3)
    for row, (least, most) in zip(rows, ((0.002, 0.4), (0.0005, 0.5), (0.0002, 0.2)), strict=True):
        for panel in row[1:]:
            norm = panel.images[0].norm
            assert (norm.vmin, norm.vmax) == pytest.approx((least, most))
            assert norm.clip


def test_many_layers_make_blocks(where):
    values = torch.rand(1, 40, 6)
    figure = heat(where, AttentionStats(values, values, torch.tensor([6]), torch.tensor([5])))
    titles = [panel.get_title() for panel in figure.subfigs[0].axes if panel.get_title()]
    assert titles == ["the picture", *(f"layer {layer}" for layer in range(40))]
    assert figure.get_figwidth() < 15


def test_layers_of_linear_attention_are_left_out(stats, where):
    stats.cross[:, 1] = stats.intra[:, 1] = 0
    stats.deletable = (0, 2)
    titles = [panel.get_title() for panel in heat(where, stats).subfigs[0].axes if panel.get_title()]
    assert titles == ["the picture", "layer 0", "layer 2"]
    with pytest.raises(FitPruneError, match="none of these layers has attention"):
        heat(where, stats, layers=[1])


def test_no_attention_at_all_is_drawn_too(where):
    nothing = torch.zeros(1, 2, 6)
    heat(where, AttentionStats(nothing, nothing, torch.tensor([6]), torch.tensor([5]))).canvas.draw()


def test_what_does_not_fit_says_so(stats, where):
    with pytest.raises(FitPruneError, match=r"no layer 3.*0 to 2"):
        heat(where, stats, layers=[3])
    with pytest.raises(FitPruneError, match="nothing to draw"):
        heat(where, stats, layers=[])
    with pytest.raises(FitPruneError, match="8 visual tokens for an image of 6"):
        heat(where, stats, sample=1)
