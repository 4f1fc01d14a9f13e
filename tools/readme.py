"""Write README.md from nbs/index.ipynb: prose as it is, code in fences, pictures as files under
nbs/images, links as seen from the root."""

import base64
import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def from_root(markdown):
    "`markdown` with its relative links, written in nbs/, as seen from the root."

    def move(m):
        return (
            m[0]
            if re.match(r"\w+:|#", m[2])
            else m[1] + posixpath.normpath(posixpath.join("nbs", m[2]))
        )

    return re.sub(r"(\]\(|src=\"|href=\")([^)\"\s]+)", move, markdown)


def output(out, name, files):
    "Markdown of one output; its picture, if any, goes into `files` as nbs/images/`name`.png."
    data = out.get("data", {})
    if "image/png" in data:
        files[f"nbs/images/{name}.png"] = base64.b64decode("".join(data["image/png"]))
        return f"![{out['metadata'].get('image/png', {}).get('alt', '')}](nbs/images/{name}.png)"
    if "text/markdown" in data:
        return from_root("".join(data["text/markdown"]))
    text = "".join(out.get("text", data.get("text/plain", "")))
    return f"```\n{text.rstrip()}\n```" if text.strip() else ""


def render(root):
    "{path: bytes} of README.md and of the pictures it shows from outputs of the index."
    files, parts = {}, []
    for i, cell in enumerate(
        json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    ):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(from_root(source))
            continue
        if re.match(r"#\|\s*hide", source):
            continue
        parts.append("```python\n" + re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip() + "\n```")
        parts += [output(o, f"index_{i}_{j}", files) for j, o in enumerate(cell["outputs"])]
    files["README.md"] = (
        "\n\n".join(p.strip() for p in parts if p.strip()).encode()
        + b"\n\n<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook, then run"
        b" make sync. -->\n"
    )
    return files


if __name__ == "__main__":
    for path, content in render(ROOT).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(content)
