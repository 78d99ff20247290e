"""Statistics, against a plain computation from transformers' own eager `output_attentions`."""

import pytest
import tiny
import torch
from test_prune import ROWS, image_spans
from tiny import LAYERS, batch, embedded, prompt

from fitprune.decoder.attach import attachment_of
from fitprune.errors import FitPruneError
from fitprune.fit import fit
from fitprune.observe import observe
from fitprune.stats import AttentionStats

SINGLES = [ROWS[0], ROWS[1], ROWS[3]]  # one, two and two images


def plain(model, inputs, spans):
    """Per image: cross and intra [L, n], by the definition, from the full maps of one unpadded row."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    length = maps[0].shape[-1]
    visual = {at for span in spans for at in range(*span)}
    found = []
    for start, end in spans:
        text = [at for at in range(end, length) if at not in visual]
        highest = torch.stack([layer[0].max(0).values for layer in maps])  # [L, S, S]
        cross = highest[:, text, start:end].sum(1) / len(text)
        intra = highest[:, start:end, start:end].sum(1) / (end - start)
        found.append((cross, intra, length - len(visual)))
    return found


@pytest.mark.parametrize("implementation", [("llava", "sdpa"), ("llava", "eager")], indirect=True)
@pytest.mark.parametrize("how", ["singles", "left", "right"])
def test_against_full_maps(implementation, how):
    samples = SINGLES if how == "singles" else [batch(SINGLES[:2], how), batch(SINGLES[2:], how)]
    stats = observe(implementation, samples, progress=False)
    wanted = [image for row in SINGLES for image in plain(implementation, row, image_spans(row))]
    assert stats.samples == len(wanted) == 5  # one entry per image
    assert stats.layers == LAYERS
    assert stats.visual_tokens.tolist() == [tiny.IMAGE_TOKENS] * 5
    for number, (cross, intra, text) in enumerate(wanted):
        torch.testing.assert_close(stats.cross[number], cross, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(stats.intra[number], intra, rtol=1e-4, atol=1e-6)
        assert stats.text_tokens[number] == text


def test_embeds_and_mask_with_ragged_images(llama):
    one, mask = embedded(20, (3, 9))
    two, other = embedded(24, (2, 4), (8, 20), seed=1)
    samples = [{"inputs_embeds": one, "visual_mask": mask}, {"inputs_embeds": two, "visual_mask": other}]
    stats = observe(llama, samples, progress=False, name="somebody")
    wanted = [*plain(llama, {"inputs_embeds": one}, [(3, 9)]), *plain(llama, {"inputs_embeds": two}, [(2, 4), (8, 20)])]
    assert stats.visual_tokens.tolist() == [6, 2, 12]
    for number, (cross, intra, _) in enumerate(wanted):
        n = cross.shape[1]
        torch.testing.assert_close(stats.cross[number, :, :n], cross, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(stats.intra[number, :, :n], intra, rtol=1e-4, atol=1e-6)
        assert not stats.cross[number, :, n:].any()
    assert stats.model == "somebody"
    bare = observe(llama.model, samples, progress=False)
    assert torch.equal(bare.cross, stats.cross)


def test_the_model_is_left_as_it_was(llava):
    assert not llava.training
    llava.train()
    try:
        observe(llava, SINGLES[:1], progress=False)
        assert llava.training
    finally:
        llava.eval()
    assert attachment_of(llava) is None
    with pytest.raises(FitPruneError, match="no image"):
        observe(llava, [prompt(7)], progress=False)
    assert attachment_of(llava) is None


def test_only_what_is_needed_runs(llava):
    ran = []
    hook = llava.lm_head.register_forward_hook(lambda *_: ran.append("lm_head"))
    observe(llava, SINGLES[:1], progress=False)
    hook.remove()
    assert not ran


def test_progress_bar(llava, capsys):
    observe(llava, iter(SINGLES), progress=True, total=3)
    assert "3/3" in capsys.readouterr().err
    observe(llava, SINGLES, progress=False)
    assert capsys.readouterr().err == ""


def test_fingerprint_is_of_the_samples(llava):
    first = observe(llava, SINGLES, progress=False)
    again = observe(llava, SINGLES, progress=False)
    other = observe(llava, SINGLES[:2], progress=False)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "at least one sample"),
        ([prompt(5)], "no image"),
        ([batch([ROWS[0], prompt(5)])], "no image"),
        ([prompt(3, "image")], "no text after"),
    ],
)
def test_samples_that_tell_nothing(llava, samples, words):
    with pytest.raises(FitPruneError, match=words) as error:
        observe(llava, samples, progress=False)
    assert "\n" not in str(error.value)


def test_the_whole_way(llava, tmp_path):
    """observe → save → load → fit → prune."""
    import fitprune

    observe(llava, SINGLES, progress=False).save(tmp_path / "stats.safetensors")
    stats = AttentionStats.load(tmp_path / "stats.safetensors")
    recipe = fit(stats, reduction_ratio=0.4)
    assert recipe.achieved >= 0.4
    with torch.no_grad(), fitprune.prune(llava, recipe) as trace:
        llava(**ROWS[0])
    assert len(trace.visual[-1][0]) == recipe.alive(tiny.IMAGE_TOKENS)[-1] < tiny.IMAGE_TOKENS
