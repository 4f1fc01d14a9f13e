"""Sampling from the exported model (ONNX Runtime) beside eager PyTorch, in one process, in turn.

Writes bench/exported.md. One evaluation of the start of 00, at several batch sizes, on one thread;
export is torch's own, with the batch size fixed: what is timed is the runtime. Needs onnx,
onnxscript and onnxruntime.

usage: python bench/exported.py [--rounds 7] [--batches 1 16 64]"""

import argparse
import datetime
import numpy as np
import os
import tempfile
import torch
from ect_nb.io import data, weights
from pathlib import Path
from step import clock, processor, spread

HERE = Path(__file__).parent
TEXT = """# Sampling: ONNX Runtime beside eager

Written by `python bench/exported.py` on {date}: {machine}, one thread, load {load}; torch {torch},
ONNX Runtime {runtime}. One evaluation of the start of 00 at t = 80, seconds of the processor, taken
in turn in one process, {rounds} rounds. *Ratio* is eager over ONNX Runtime in the same round,
median [least, most]; above 1 the exported model is faster. *Apart* is the largest difference of two
answers, in units of the pictures' range [-1, 1].

| batch | eager, ms a picture | ONNX Runtime, ms a picture | ratio | apart |
| --- | --- | --- | --- | --- |
{rows}
"""


def exported(model, x, t, path):
    "A session of ONNX Runtime for `model` at the shape of `x`."
    import onnxruntime

    torch.onnx.export(model, (x, t), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def line(model, batch, rounds, folder):
    z = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x, t = 80 * z, torch.full((batch,), 80.0)
    session = exported(model, x, t, str(folder / f"{batch}.onnx"))
    names = [i.name for i in session.get_inputs()]
    given = dict(zip(names, (x.numpy(), t.numpy())))
    eager, run = lambda: model(x, t), lambda: session.run(None, given)[0]
    apart = float(np.abs(run() - eager().numpy()).max())
    here, there = [], []
    for _ in range(rounds + 1):
        here.append(clock(eager, torch.device("cpu")))
        there.append(clock(run, torch.device("cpu")))
    low, middle, high = spread([a / b for a, b in zip(here[1:], there[1:])])
    per = [1000 * spread(s[1:])[1] / batch for s in (here, there)]
    ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    return f"| {batch} | {per[0]:.2f} | {per[1]:.2f} | {ratio} | {apart:.0e} |"


def main():
    import onnxruntime

    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    args = args.parse_args()
    torch.set_num_threads(1)
    model = weights.load(data.find("fashion_mnist_diffusion.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        rows = [line(model, batch, args.rounds, Path(folder)) for batch in args.batches]
    facts = dict(
        date=datetime.date.today().isoformat(),
        machine=processor(),
        load=round(os.getloadavg()[0], 1),
        torch=torch.__version__,
        runtime=onnxruntime.__version__,
        rounds=args.rounds,
        rows="\n".join(rows),
    )
    (HERE / "exported.md").write_text(TEXT.format(**facts))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
