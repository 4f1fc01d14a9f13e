"The small parts of a run folder; what a whole run does with it stands in test_training.py."

import errno
import pytest
import torch
from ect_nb.training.runs import (
    RunFolder,
    checksum,
    flat,
    load_state,
    pack,
    room,
    save_state,
    unflat,
    unpack,
)
from torch import nn


def stepped(optimizer, layer):
    layer(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["Adam", "RAdam", "AdamW"])
def test_an_optimiser_goes_on_as_if_it_had_never_been_put_away(kind):
    torch.manual_seed(0)
    a = nn.Linear(4, 2)
    b = nn.Linear(4, 2)
    b.load_state_dict(a.state_dict())
    one, two = (getattr(torch.optim, kind)(m.parameters(), lr=0.1) for m in (a, b))
    for _ in range(3):
        stepped(one, a)
    b.load_state_dict(a.state_dict())
    unflat(two, unpack(pack(optimizer=flat(one)), "optimizer"))
    for _ in range(5):
        stepped(one, a)
        stepped(two, b)
    assert torch.equal(a.weight, b.weight) and checksum(flat(one)) == checksum(flat(two))


def test_a_state_comes_back_with_bits_and_facts_and_only_two_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        save_state(folder, pack(model=dict(w=torch.full((2, 3), float(step)))), step=step, note="é")
    tensors, facts = load_state(folder)
    assert (
        facts == dict(step=3, note="é")
        and torch.equal(unpack(tensors, "model")["w"], torch.full((2, 3), 3.0))
        and len(folder.states()) == 2
    )


def test_a_single_turned_bit_is_seen(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        save_state(folder, pack(model=dict(w=torch.full((50,), float(step)))), step=step)
    path = folder.states()[-1]
    content = bytearray(path.read_bytes())
    content[-7] ^= 16
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum is wrong"):
        assert load_state(folder)[1]["step"] == 1


def test_no_room_is_a_sentence_and_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="make room"):
        with room(RunFolder(tmp_path)):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyError):
        with room(RunFolder(tmp_path)):
            raise KeyError("x")
