import json
import pytest
import torch
from ect_nb import devices
from ect_nb.diffusion import Precond, karras_times
from ect_nb.io import data, weights
from ect_nb.networks import MLP
from ect_nb.sampling import multistep, sample
from ect_nb.schedules import Stages
from ect_nb.show.live import live_panel
from ect_nb.show.pictures import tile
from ect_nb.show.tuning import Tuning
from ect_nb.training.config import Config
from ect_nb.training.loop import dice, draw, train
from pathlib import Path
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

ROOT = Path(__file__).resolve().parent.parent

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
    with pytest.raises(ValueError, match=f"^the device {name} is not here: choose device=.cpu.$"):
        devices.device(name)
    monkeypatch.setenv("ECT_NB_DEVICE", name)
    told = "that ECT_NB_DEVICE names is not here: choose device=.cpu.$"
    with pytest.raises(ValueError, match=told):
        devices.device()


def test_a_gpu_too_many(two_gpus):
    with pytest.raises(ValueError, match="choose device=.cuda. or"):
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


# ---- pages, on a stand-in: the CPU under the name cuda

MADE = "randn rand arange tensor zeros ones full empty linspace logspace from_numpy randint".split()
CROSSES = "to copy_ __getitem__ __setitem__ __set__ __get__ cpu tolist item index_put_".split()
CROSSES += ["_has_compatible_shallow_copy_type"]


class Elsewhere(TorchFunctionMode):
    """What is moved to cuda stays on the CPU and is marked. Tensors say that they lie there, their
    descendants too, and one of the host among them is an error, as it is on a GPU."""

    def __init__(self):
        super().__init__()
        self.there, self.host = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def mark(self, tensors, place):
        for x in tensors:
            if isinstance(x, torch.Tensor):
                place[x] = True

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(f, "__name__", "")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in given if x in self.there]
        if f is torch.device or name == "_parse_to":  # a name is no move
            return f(*args, **kwargs)
        if f == torch.Tensor.device.__get__ and there:
            return torch.device("cuda")
        if f == torch.Tensor.is_cuda.__get__:
            return bool(there)
        if f is torch.Tensor.pin_memory:
            return args[0]
        if name == "__set__" and any(a is args[1] for a in there):  # p.data = x
            self.mark(args[:1], self.there)
        stay = [x for x in given if x in self.host and x not in self.there and len(x.shape)]
        if there and stay and name not in CROSSES:
            raise RuntimeError(f"{name} was given tensors of two devices")
        asked = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.device | str)]
        goes = any(str(a).startswith("cuda") for a in asked)
        swap = lambda a: "cpu" if isinstance(a, torch.device | str) and goes and a in asked else a
        out = f(*map(swap, args), **{k: swap(v) for k, v in kwargs.items()})
        if name in ("to", "cpu") and out is args[0]:
            out = out.clone()
        stays = name == "cpu" or asked and not goes or not there and (stay or name in MADE)
        place = self.there if goes or there and name != "cpu" else self.host if stays else {}
        self.mark(tree_leaves(out), place)
        return out


@pytest.fixture
def elsewhere(two_gpus, monkeypatch):
    here = lambda seed, stream, step, device="cpu", part=0: dice(seed, stream, step, "cpu", part)
    monkeypatch.setattr("ect_nb.training.loop.dice", here)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    monkeypatch.setattr("ect_nb.training.loop.fast_precisions", lambda device: [])
    health = "_accelerator_graph_capture_health_check"
    monkeypatch.setattr(torch.optim.Optimizer, health, lambda self: None, raising=False)
    with Elsewhere() as mode:
        yield mode


def cells(name, *ids):
    "The code of some cells of a page, by their ids."
    page = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())
    found = {c["id"]: "".join(c["source"]) for c in page["cells"]}
    return [found[i] for i in ids]


def shown(rows, alt, **kw):
    "In place of a picture: as bytes, as it would be."
    return [tile(x) for x in rows]


def test_the_stand_in_refuses_two_devices(elsewhere):
    here, there = torch.randn(3), torch.randn(3).to("cuda")
    assert there.device.type == (2 * there).device.type == "cuda" and here.device.type == "cpu"
    assert (2 * there).cpu().device.type == "cpu" and (there * 2.0 + 1).is_cuda
    for wrong in (lambda: here + there, lambda: torch.cat([there, here]), lambda: there @ here):
        with pytest.raises(RuntimeError, match="two devices"):
            wrong()
    model = torch.nn.Linear(3, 1).to("cuda")
    assert devices.device_of(model).type == "cuda" and model(there).is_cuda


def test_the_live_page_stays_on_its_device(elsewhere):
    names = dict(torch=torch, data=data, weights=weights, sample=sample, show_images=shown)
    names |= dict(device=devices.device)
    exec(cells("workshop/live", "fdc09d48")[0], names)
    assert names["z"].is_cuda and devices.device_of(names["model"]).type == "cuda"
    live_panel({"one": names["model"]}, n=2)


def test_the_garments_of_07_stay_on_their_device(elsewhere):
    names = dict(torch=torch, data=data, weights=weights, sample=sample, show_images=shown)
    names |= dict(device=devices.device, heun=lambda f, z, times: f(80 * z, 80.0))
    names |= dict(karras_times=karras_times, multistep=multistep)
    names["seeded"] = lambda seed: torch.Generator().manual_seed(seed)
    exec(cells("lessons/07_sampling", "03e0cfd7")[0], names)
    assert all(x.is_cuda for x in names["rows"].values())


def test_a_run_goes_where_its_model_lies(elsewhere):
    where = devices.device()
    model = weights.load(data.find("fashion_mnist_diffusion.safetensors"), device=where)
    clothes = data.load("fashion_mnist_20k").subset(32)
    config = Config(kimg=0.008, batch=4, precision="auto", stages=Stages(3))
    noise = torch.randn(2, 1, 28, 28).to(where)
    tuning = Tuning(model, clothes, config, noise, n_looks=1)
    assert tuning.step() and tuning.last.loss.is_cuda
    assert devices.device_of(tuning.model).type == "cuda"
