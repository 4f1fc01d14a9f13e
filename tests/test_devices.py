import pytest
import torch
from ect_nb import devices
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP
from ect_nb.sampling import sample
from ect_nb.show.live import live_panel
from ect_nb.training.config import Config
from ect_nb.training.loop import dice, draw, train

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
POINTS = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) / 2


@pytest.fixture
def two_gpus(monkeypatch):
    "As on a machine with two GPUs, as far as names go."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("ECT_NB_DEVICE", raising=False)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("ECT_NB_DEVICE", raising=False)


def test_the_fastest_device_is_taken(two_gpus):
    assert devices.device() == torch.device("cuda") and devices.budget(1, 10) == 10
    assert devices.device("cuda:1") == torch.device("cuda:1")


def test_without_a_gpu_it_is_the_cpu(no_gpu):
    assert devices.device() == torch.device("cpu") and devices.budget(1, 10) == 1


def test_the_environment_overrules_and_the_reader_overrules_it(two_gpus, monkeypatch):
    monkeypatch.setenv("ECT_NB_DEVICE", "cpu")
    assert devices.device().type == "cpu" and devices.budget(1, 10) == 1
    assert devices.device("cuda").type == "cuda"
    assert devices.budget(1, 10, "cuda:0") == devices.budget(1, 10, torch.device("mps")) == 10
    monkeypatch.setenv("ECT_NB_DEVICE", "  ")
    assert devices.device().type == "cuda"


@pytest.mark.parametrize("name", "cuda cuda:0 mps meta abacus cpu:1 CPU cuda:".split())
def test_a_device_that_is_not_here_costs_one_sentence(no_gpu, monkeypatch, name):
    with pytest.raises(ValueError, match=f"^the device {name} is not here: choose cpu$"):
        devices.device(name)
    monkeypatch.setenv("ECT_NB_DEVICE", name)
    with pytest.raises(ValueError, match="that ECT_NB_DEVICE names is not here: choose cpu$"):
        devices.device()


def test_a_gpu_too_many(two_gpus):
    with pytest.raises(ValueError, match="choose cuda or"):
        devices.device("cuda:2")


def test_where_a_model_lies():
    assert devices.device_of(MLP().to("meta")).type == "meta"
    assert devices.device_of(torch.nn.Identity()).type == devices.device_of(abs).type == "cpu"


def test_the_live_panel_takes_its_noise_to_the_model(monkeypatch):
    "A stand-in: what `.to` was asked for where the model says that it lies elsewhere."
    asked, real = [], torch.Tensor.to
    elsewhere = torch.device("meta")
    monkeypatch.setattr("ect_nb.show.live.device_of", lambda model: elsewhere)

    def to(x, *args, **kw):
        if args and args[0] is elsewhere:
            asked.append(tuple(x.shape))
            return x
        return real(x, *args, **kw)

    monkeypatch.setattr(torch.Tensor, "to", to)
    live_panel({"zero": lambda x, t: 0 * x}, shape=(1, 4, 4), n=3)
    assert asked == [(3, 1, 4, 4)]


# ---- all dice fall on the host


def test_the_dice_of_a_step_do_not_know_the_device():
    config = Config(batch=16)
    here, there = (draw(config, POINTS, 5, 1, where) for where in ("cpu", "meta"))
    assert all(a.shape == b.shape for a, b in zip(here, there))
    assert there[0].device.type == there[3].device.type == "meta"
    assert torch.equal(here[1], there[1]) and torch.equal(here[2], there[2])
    noise = torch.randn(16, 2, generator=dice(0, "noise", 5))
    assert torch.equal(here[3], noise)


@cuda
def test_a_run_on_cuda_has_the_numbers_of_the_cpu_within_rounding():
    torch.manual_seed(0)
    model = Precond(MLP(dim=2, width=32), sigma_data=0.5)
    config = Config(kimg=1.28, batch=64, lr=1e-3)
    cpu, gpu = (list(train(model, POINTS, config, device=d)) for d in ("cpu", "cuda"))
    here, there = (torch.stack([p.loss.cpu() for p in run]) for run in (cpu, gpu))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    x, y = sample(cpu[-1].ema, z), sample(gpu[-1].ema, z.cuda()).cpu()
    torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)
