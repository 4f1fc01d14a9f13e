import numpy as np
import pytest
import torch
from ect_nb.measure import bulk
from ect_nb.measure.bulk import BLOCK, Speed, draw, noise, save_npz
from ect_nb.sampling import sample
from torch import nn


def shrink(x, t):
    return (
        x / (1 + 4 * t.reshape(-1, 1, 1, 1) ** 2).sqrt()
    )  # an exact denoiser-like map, row by row


def together(*a, **kw):
    return torch.cat(list(draw(*a, **kw)))


@pytest.mark.parametrize("batch", [32, 64, 96, 1000])
def test_the_pictures_do_not_depend_on_the_batch(batch):
    assert torch.equal(
        together(shrink, 150, (3, 4, 4), (80.0, 0.8), batch=batch),
        together(shrink, 150, (3, 4, 4), (80.0, 0.8), batch=BLOCK),
    )


def test_more_pictures_begin_with_the_fewer_and_seeds_differ():
    many, few = together(shrink, 100, (1, 4, 4)), together(shrink, 40, (1, 4, 4))
    assert torch.equal(many[:40], few) and not torch.equal(
        few, together(shrink, 40, (1, 4, 4), seed=1)
    )


def test_each_evaluation_has_fresh_noise_and_pictures_are_standard_normal_before_the_model():
    a, b = noise(0, 0, 2048, (3, 4, 4), k=2)
    x = torch.stack([a, b]).flatten(1)
    assert (
        abs(torch.corrcoef(x)[0, 1]) < 0.02
        and (x.mean(1).abs() < 0.02).all()
        and ((x.std(1) - 1).abs() < 0.02).all()
    )
    assert len({tuple(r.flatten()[:4].tolist()) for r in a}) == 2048


def test_the_samples_are_those_of_sampling_sample():
    """With one evaluation the noise alone decides; with two, sample() is given the same fresh noise
    by a stand-in generator."""
    z1, z2 = noise(5, 0, 64, (3, 4, 4), k=2)
    one = (sample(shrink, z1) * 127.5 + 128).clamp(0, 255).byte()
    assert torch.equal(together(shrink, 64, (3, 4, 4), seed=5), one)
    x = shrink(
        (shrink(80 * z1, torch.full((64,), 80.0)) + 0.8 * z2).double(), torch.full((64,), 0.8)
    )
    two = (x * 127.5 + 128).clamp(0, 255).byte()
    assert (together(shrink, 64, (3, 4, 4), (80.0, 0.8), seed=5).int() - two.int()).abs().max() <= 1


@pytest.mark.parametrize("room", [200, 48, 33])
def test_running_out_of_memory_halves_the_batch_and_loses_nothing(room):
    def tight(x, t):
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return shrink(x, t)

    speed = Speed()
    assert torch.equal(
        together(tight, 500, (1, 4, 4), (80.0, 1.0), batch=512, speed=speed),
        together(shrink, 500, (1, 4, 4), (80.0, 1.0)),
    )
    assert speed.halved >= 2 and speed.batch <= room and speed.done == 500


def test_when_nothing_fits_one_sentence_says_so():
    def full(x, t):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="not even 32 pictures fit"):
        list(draw(full, 10, (1, 4, 4)))


def test_other_errors_are_not_taken_for_a_full_memory():
    def broken(x, t):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(draw(broken, 10, (1, 4, 4)))


def test_the_batch_grows_while_that_pays(monkeypatch):
    """A clock of our own: a batch costs 1 + rows / 100 seconds until 256 rows, beyond that as much
    per row as at 256."""
    now = [0.0]
    monkeypatch.setattr(bulk.time, "perf_counter", lambda: now[0])

    def model(x, t):
        now[0] += 1 + len(x) / 100 if len(x) <= 256 else len(x) * (1 + 2.56) / 256
        return x

    speed = Speed()
    sizes = [len(x) for x in draw(model, 3000, (1, 2, 2), speed=speed)]
    assert sizes[:4] == [64, 128, 256, 512] and set(sizes[4:-1]) == {256} and sum(sizes) == 3000
    assert speed.rate == pytest.approx(3000 / now[0])


def test_labels_go_to_the_rows_they_belong_to():
    labels = nn.functional.one_hot(torch.arange(100) % 10, 10).float()

    def told(x, t, labels):
        return labels.argmax(1).float().view(-1, 1, 1, 1).expand_as(x) / 10 - 0.5

    got = together(told, 100, (1, 2, 2), labels=labels, batch=32)
    want = ((torch.arange(100) % 10).float() / 10 - 0.5) * 127.5 + 128
    assert torch.equal(got[:, 0, 0, 0], want.byte())
    with pytest.raises(ValueError, match="100 pictures want as many labels, not 7"):
        list(draw(told, 100, (1, 2, 2), labels=labels[:7]))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: list(draw(shrink, 0, (1, 2, 2))), "at least one picture"),
        (lambda: noise(0, 5, 37, (1, 2, 2)), "begins at a multiple of 32"),
    ],
)
def test_bad_arguments_get_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_npz_reads_back_in_the_order_of_evaluation_tools(tmp_path):
    x = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    with np.load(save_npz(x, tmp_path / "a" / "samples.npz"), allow_pickle=False) as f:
        assert (f["arr_0"] == x.permute(0, 2, 3, 1).numpy()).all() and f["arr_0"].shape == (
            5,
            4,
            6,
            3,
        )
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["samples.npz"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_that_is_full_is_survived():
    "A limit of 1 GB on the process, and a model that wants 4 MB a picture."
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:

        def greedy(x, t):
            return x + torch.zeros(len(x), 2**20, device=x.device).sum(1).view(-1, 1, 1, 1)

        speed = Speed()
        assert (
            len(together(greedy, 600, (1, 4, 4), batch=1024, device="cuda", speed=speed)) == 600
            and speed.halved
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
