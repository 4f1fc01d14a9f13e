#!/usr/bin/env python3
"""Make data/fashion_mnist from the published Fashion-MNIST idx files: the first 20,000 training and
2,000 test pictures, lossless.

usage: python tools/make_fashion_mnist.py SOURCE [OUT]

SOURCE holds {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, as published by Zalando or installed
by Debian's package dataset-fashion-mnist; their md5 is checked. OUT is data/fashion_mnist unless
given. Writes two contact sheets, two files of labels, LICENSE and README.md, and prints the
constants that ect_nb.io.data checks. About 25 s; needs numpy and pillow."""

import gzip
import hashlib
import numpy as np
import sys
from pathlib import Path
from PIL import Image, features

ACROSS = 100
SPLITS = {  # ours: (theirs, how many, md5 of the raw images, md5 of the raw labels)
    "train": (
        "train",
        20000,
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
    ),
    "test": ("t10k", 2000, "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}
LICENSE = """The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
README = """# Fashion-MNIST, the part that is shipped

The first 20,000 training and the first 2,000 test pictures of Fashion-MNIST (28 × 28, grey, ten
kinds of garment), unchanged and in the set's own order. `train.webp` and `test.webp` are lossless
contact sheets, {across} pictures to a row: open one and see the wardrobe. `train_labels.npy` and
`test_labels.npy` hold one byte a picture.

- Source: Zalando Research, <https://github.com/zalandoresearch/fashion-mnist>, read from {source}.
- Paper: Xiao, Rasul and Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms*, 2017, arXiv:1708.07747.
- Licence: MIT, © 2017 Zalando SE, see `LICENSE`.
- Labels: 0 T-shirt/top, 1 Trouser, 2 Pullover, 3 Dress, 4 Coat, 5 Sandal, 6 Shirt, 7 Sneaker, 8
Bag, 9 Ankle boot.
- Made by `python tools/make_fashion_mnist.py SOURCE` (Pillow {pillow}, libwebp {webp}). Another
libwebp may write other bytes into the sheets; the decoded pictures are the same, and it is those
that `ect_nb.io.data.load` checks.

| raw file (gunzipped) | md5 |
|---|---|
{raw}

| shipped file | bytes | sha256 of the file | sha256 of the values, picture by picture |
|---|---|---|---|
{shipped}
"""


def read(path, md5, header):
    data = gzip.open(path).read()
    if hashlib.md5(data).hexdigest() != md5:
        sys.exit(
            f"{path}: md5 of the raw file is {hashlib.md5(data).hexdigest()}, published is {md5}"
        )
    return np.frombuffer(data, np.uint8, offset=header)


def main(source, out=Path(__file__).resolve().parent.parent / "data" / "fashion_mnist"):
    source, out = Path(source), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    raw, shipped, constants = [], [], []
    for ours, (theirs, n, md5_images, md5_labels) in SPLITS.items():
        images, labels = f"{theirs}-images-idx3-ubyte", f"{theirs}-labels-idx1-ubyte"
        x = read(source / f"{images}.gz", md5_images, 16).reshape(-1, 28, 28)[:n]
        y = read(source / f"{labels}.gz", md5_labels, 8)[:n]
        sheet = (
            x.reshape(n // ACROSS, ACROSS, 28, 28)
            .transpose(0, 2, 1, 3)
            .reshape(n // ACROSS * 28, ACROSS * 28)
        )
        Image.fromarray(sheet).convert("RGB").save(
            out / f"{ours}.webp", lossless=True, quality=80, method=4
        )
        np.save(out / f"{ours}_labels.npy", y)
        raw += [f"| `{images}` | `{md5_images}` |", f"| `{labels}` | `{md5_labels}` |"]
        for name, values in (f"{ours}.webp", x), (f"{ours}_labels.npy", y):
            file, digest = (out / name).read_bytes(), hashlib.sha256(values.tobytes()).hexdigest()
            shipped.append(
                f"| `{name}` | {len(file):,} | `{hashlib.sha256(file).hexdigest()}` | `{digest}` |"
            )
            constants.append(f'    "{name}": ({len(file)}, "{digest}"),')
    origin = (
        "Debian's package dataset-fashion-mnist"
        if str(source).startswith("/usr/share/")
        else "the published files"
    )
    (out / "LICENSE").write_text(LICENSE, encoding="utf-8")
    (out / "README.md").write_text(
        README.format(
            across=ACROSS,
            source=origin,
            pillow=Image.__version__,
            webp=features.version("webp"),
            raw="\n".join(raw),
            shipped="\n".join(shipped),
        ),
        encoding="utf-8",
    )
    print("\n".join(constants))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
