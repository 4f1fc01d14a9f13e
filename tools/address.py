"""Write the repository's public address, [project.urls] Repository in pyproject.toml, wherever the
repository names itself.

It may do so in these forms: a Colab link, `git clone URL`, `git+URL`, and `repository-code` in
CITATION.cff. All other links to its own files are relative."""

import re
import tomllib
from house import pages
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def address(root):
    "(url, branch) of the repository."
    toml = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return toml["project"]["urls"]["Repository"], toml["tool"]["nbdev"]["branch"]


def rewrite(text, url, branch):
    "`text` with every mention of the repository's own address set to `url`."
    slug = "/".join(url.split("/")[-2:])
    text = re.sub(
        r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+/blob/[\w.-]+",
        rf"\g<1>{slug}/blob/{branch}",
        text,
    )
    return re.sub(r"(git clone |git\+|repository-code: )https?://[\w.:/~-]+", rf"\g<1>{url}", text)


def sources(root):
    "The files in which the repository names itself."
    return [
        p
        for p in [
            *pages(root),
            root / "CITATION.cff",
            root / "CONTRIBUTING.md",
        ]
        if p.exists()
    ]


if __name__ == "__main__":
    for path in sources(ROOT):
        old, new = (
            path.read_text(encoding="utf-8"),
            rewrite(path.read_text(encoding="utf-8"), *address(ROOT)),
        )
        if new != old:
            path.write_text(new, encoding="utf-8")
            print("address:", path.relative_to(ROOT))
