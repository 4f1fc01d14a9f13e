"""Any data set with len and items trains: three names are the whole protocol."""

import numpy as np
import pytest
import torch
from ect_nb import Config, Denoising, Precond, train
from ect_nb.io.datasets import Rows
from ect_nb.networks import UNet
from PIL import Image


class Pairs(torch.utils.data.Dataset):
    "A torch Dataset of PIL pictures and labels."

    def __init__(self, mode="RGB", size=(12, 8)):
        self.mode, self.side, self.fetched = mode, size, []

    def __len__(self):
        return 40

    def __getitem__(self, i):
        self.fetched.append(i)
        rgb = np.full((self.side[1], self.side[0], 3), i, np.uint8)
        picture = Image.fromarray(rgb)
        return picture.quantize() if self.mode == "P" else picture.convert(self.mode), i % 4


class Columns(list):
    "What a Hugging Face data set looks like from outside: dicts, and columns by name."

    column_names, _fingerprint = ["img", "fine_label"], "abc123"

    def __getitem__(self, key):
        return [r[key] for r in self] if isinstance(key, str) else super().__getitem__(key)


def test_pairs_of_any_mode():
    for mode, channels in dict(RGB=3, RGBA=3, L=1, LA=1, P=3, CMYK=3).items():
        rows = Rows(Pairs(mode))
        assert rows.shape == (channels, 8, 12), mode
        x = rows.batch(torch.tensor([0, 39]))
        assert x.shape == (2, channels, 8, 12) and x.min() >= -1 and x.max() <= 1
        assert torch.allclose(x[1], torch.tensor(39 / 127.5 - 1), atol=0.03), mode
    assert Rows(Pairs("RGB"), channels=1, size=(4, 6)).shape == (1, 4, 6)


def test_sixteen_bits_and_transparency():
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.allclose(Rows([deep]).batch([0]), torch.tensor(156 / 127.5 - 1))
    assert (Rows([clear]).batch([0]) == 1).all()  # on white


def test_columns_and_labels_without_decoding():
    items = [dict(img=Image.new("L", (5, 5), i), fine_label=i % 3) for i in range(30)]
    rows = Rows(Columns(items))
    assert rows.labels.tolist() == [i % 3 for i in range(30)] and rows.checksum == "abc123"
    other = Rows(items, picture="img", label="fine_label")
    assert torch.equal(other.labels, rows.labels) and other.checksum != rows.checksum
    assert other.checksum == Rows(items, label="fine_label").checksum


def test_names_are_numbered_and_a_gap_is_said():
    items = [dict(image=Image.new("L", (5, 5), i), id=i, label="bca"[i % 3]) for i in range(9)]
    rows = Rows(items)
    assert rows.labels.tolist() == [1, 2, 0] * 3 and rows.classes == ["a", "b", "c"]
    assert Rows([item | dict(label=None) for item in items]).labels is None
    items[4] |= dict(label=None)
    with pytest.raises(ValueError, match="item 4 of list has no label"):
        print(Rows(items).labels)
    with pytest.raises(ValueError, match="picture='…'"):
        Rows([dict(a=1)])


def test_arrays_latents_and_bytes():
    assert Rows(np.zeros((3, 8, 6, 3), np.uint8)).shape == (3, 8, 6)
    assert Rows(torch.zeros(3, 4, 7, 5)).shape == (4, 7, 5)  # latents
    assert Rows([torch.zeros(2)] * 3).shape == (2,)
    assert Rows([torch.zeros(2)] * 3).labels is None


@pytest.mark.parametrize(
    "items, word",
    [
        ([], "empty"),
        (iter([1]), "no len"),
        ([torch.full((1, 4, 4), 300.0)], "item 0 of list: its numbers"),
        ([torch.full((1, 4, 4), float("nan"))], "item 0"),
        ([torch.ones(4, 4, dtype=torch.int64)], "neither bytes nor floats"),
    ],
)
def test_refused(items, word):
    with pytest.raises(ValueError, match=word):
        Rows(items)


def test_shapes_must_agree():
    rows = Rows([Image.new("L", (5, 5)), Image.new("L", (6, 5))])
    with pytest.raises(ValueError, match="give size="):
        rows.batch([0, 1])


def test_trained_with_labels_stopped_and_continued(tmp_path):
    def last(data, limit=None):
        torch.manual_seed(0)
        model = Precond(UNet(8, 3, 8, (1, 1), 1, attention=(), label_dim=4))
        for p in train(model, data, Config(Denoising(), kimg=0.2, batch=20), limit):
            if limit is not None and p.step == 4 and limit.name == "run" and not stopped:
                stopped.append(1)
                break
        return p

    stopped = []
    rows = lambda: Rows(Pairs(size=(8, 8)))
    whole = last(rows(), tmp_path / "whole")
    last(rows(), tmp_path / "run")
    resumed = last(rows(), tmp_path / "run")
    assert resumed.done == 1
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.parameters(), resumed.ema.parameters()))
    with pytest.raises(ValueError, match="other data"):
        last(Rows([Pairs(size=(8, 8))[i] for i in range(39, -1, -1)]), tmp_path / "run")
    data = Pairs(size=(8, 8))
    Rows(data)
    assert data.fetched == [0, 0]  # nothing is read that is not asked for
