"""What all tests share: no network, one thread per process (the models are tiny), fixed seeds, models built once."""

import importlib.util
import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test never waits for a hub
if torch.cuda.is_available():
    torch.backends.cudnn.allow_tf32 = False  # convolutions are compared with those of the CPU
else:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels run on the CPU

torch.set_num_threads(1)

if importlib.util.find_spec("torchvision"):  # `make test-video`
    import torchvision_ops

    torchvision_ops.declare()

if importlib.util.find_spec("hypothesis"):  # a busy machine is no fault of the code: no test has a deadline
    from hypothesis import settings

    settings.register_profile("untimed", settings.default, deadline=None)
    settings.load_profile("untimed")

REST = ("docs", "embedded", "release", "web")  # folders that `make test` leaves to `make test-all`


def pytest_collection_modifyitems(items):
    """Marks what is not the product itself; single tests elsewhere carry the marker by themselves."""
    for item in items:
        if item.path.parent.name in REST:
            item.add_marker("rest")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def llama():
    """A bare causal Llama with grouped-query attention, fed with `inputs_embeds`."""
    import tiny

    return tiny.llama()


@pytest.fixture(scope="session")
def llava():
    """A LLaVA with a small CLIP and the same Llama."""
    import tiny

    return tiny.llava()


@pytest.fixture
def trace(llava):
    """A real one: 16 visual tokens (4 × 4) from position `tiny.FIRST` on, deletions in layers 0, 2 and 3."""
    import tiny

    import fitprune

    with torch.no_grad(), fitprune.prune(llava, tiny.RECIPE) as trace:
        llava(**tiny.prompt(tiny.FIRST, "image", 5))
    return trace


@pytest.fixture
def implementation(request):
    """Indirect parameter `(model fixture, name)`: that model with that attention implementation, set back afterwards."""
    fixture, name = request.param
    model = request.getfixturevalue(fixture)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    yield model
    model.set_attn_implementation(before)
