"""What a student's environment must do: load the lessons, check an answer, write a hand-in.

Run by the workflow on every system, without pytest."""

import json
import tempfile
import torch
from ect_nb.course.hand_in import report
from ect_nb.course.lesson_07 import check_two_steps
from ect_nb.diffusion import Precond
from ect_nb.networks import MLP
from ect_nb.sampling import sample
from pathlib import Path

if __name__ == "__main__":
    assert sample(Precond(MLP(dim=2), sigma_data=0.5), torch.randn(8, 2)).shape == (8, 2)
    print(check_two_steps(lambda f, z1, z2, t1=80.0, t2=0.8: f(f(t1 * z1, t1) + t2 * z2, t2)))
    with tempfile.TemporaryDirectory() as folder:
        file = report("07", "Zoë Æon", folder)
        said = json.loads(Path(file).read_text(encoding="utf-8"))
    assert said["said"]["check_two_steps"][0] == 1
