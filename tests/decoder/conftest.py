"""What tests of the decoder share."""

import pytest
import tiny
import torch


@pytest.fixture(scope="session")
def on_meta():
    """A decoder and its input on the meta device, where any value that the host asks for is an error."""
    with torch.device("meta"):
        model, embeds = tiny.DECODERS["llama"]().eval(), torch.empty(2, 26, tiny.HIDDEN)
    try:
        with torch.no_grad():
            model.model(inputs_embeds=embeds)
    except RuntimeError as error:
        pytest.skip(f"this PyTorch does not run the model itself on the meta device: {error}")
    return model, embeds
