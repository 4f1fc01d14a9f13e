"""Files: what is written is whole, and digests and seeds are those that version 0.1 stored."""

import hashlib
import numpy as np
import pytest
import torch
from ect_nb.io import data, files

ARRAYS = (
    torch.tensor(5),
    torch.arange(12).view(3, 4).T,
    torch.zeros(0, 2),
    torch.tensor([True, False]),
    torch.arange(6.0).view(1, 2, 3)[:, ::1],
)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: str(tuple(a.shape)))
def test_a_digest_is_that_of_the_bytes_in_order(array):
    raw = array.contiguous().numpy().tobytes()
    assert files.digest(array.numpy()) == hashlib.sha256(raw).hexdigest()
    assert (
        files.digest("é", raw, b"\0\0") == hashlib.sha256("é".encode() + raw + b"\0\0").hexdigest()
    )


def test_digests_that_version_0_1_stored_are_the_same():
    assert data.load("fashion_mnist_20k").checksum == "d7a40e636131260a"
    assert files.digest("", digits=16) == "e3b0c44298fc1c14"


def test_a_file_has_the_digest_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    assert files.file_digest(tmp_path / "a") == files.digest(bytes(range(256)) * 5000)
    with pytest.raises(ValueError, match="is a folder"):
        files.file_digest(tmp_path)


SEEDS = {
    (0, 0): 7_896_617_691_693_857_887,
    (3, 1, 7): 2_219_947_408_961_387_175,
    (3, 1, 7, 2): 5_100_279_981_988_440_957,
}


@pytest.mark.parametrize("numbers, seed", SEEDS.items(), ids=str)
def test_a_seed_belongs_to_its_numbers_for_ever(numbers, seed):
    "As version 0.1 drew for a block of noise, for a stream at a step, and for a part of it."
    assert files.seed_of(*numbers) == seed
    theirs = torch.Generator().manual_seed(seed)
    assert torch.equal(
        torch.rand(5, generator=files.dice(*numbers)), torch.rand(5, generator=theirs)
    )


def test_neighbouring_seeds_have_nothing_in_common():
    x = torch.stack([torch.randn(1000, generator=files.dice(0, i)) for i in range(50)])
    assert x.corrcoef().fill_diagonal_(0).abs().max() < 5 / 1000**0.5
    assert len({files.seed_of(i, j) for i in range(30) for j in range(30)}) == 900
    assert all(0 <= files.seed_of(i) < 2**63 for i in range(100))


def test_a_write_that_fails_leaves_the_old_file_and_no_scraps(tmp_path):
    files.write_atomically(tmp_path / "deep" / "a", b"old")
    with pytest.raises(TypeError):
        files.write_atomically(tmp_path / "deep" / "a", np)
    assert [p.read_bytes() for p in (tmp_path / "deep").iterdir()] == [b"old"]
