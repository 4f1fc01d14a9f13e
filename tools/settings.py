"Write settings.ini: the facts of pyproject.toml in the form that nbdev 2.4 reads."

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def text(root):
    "What settings.ini must say."
    toml = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, nbdev = toml["project"], toml["tool"]["nbdev"]
    url, extras = project["urls"]["Repository"], project["optional-dependencies"]
    user, repo = url.split("/")[-2:]
    version = re.search(
        r'__version__ = "(.+)"',
        (root / nbdev["lib_path"] / "__init__.py").read_text(encoding="utf-8"),
    )[1]
    facts = dict(
        repo=repo,
        user=user,
        lib_name=project["name"],
        version=version,
        min_python=re.search(r">=([\d.]+)", project["requires-python"])[1],
        license={"Apache-2.0": "apache2"}[project["license"]],
        description=project["description"],
        keywords=" ".join(k.replace(" ", "-") for k in project["keywords"]),
        author=project["authors"][0]["name"],
        author_email="",
        copyright=project["authors"][0]["name"],
        branch=nbdev["branch"],
        git_url=url,
        doc_host="",
        doc_baseurl="/",
        nbs_path=nbdev["nbs_path"],
        lib_path=nbdev["lib_path"],
        doc_path=nbdev["doc_path"],
        tst_flags=nbdev["tst_flags"],
        clean_ids=nbdev["clean_ids"],
        update_pyproject=nbdev["update_pyproject"],
        status=3,
        audience="Education",
        language="English",
        requirements=" ".join(project["dependencies"]),
        dev_requirements=" ".join(
            r for r in dict.fromkeys(sum(extras.values(), [])) if not r.startswith(project["name"])
        ),
    )
    return (
        "[DEFAULT]\n# Written from pyproject.toml by tools/settings.py (make sync), for nbdev"
        " 2.4.\n" + "".join(f"{k} = {v}".rstrip() + "\n" for k, v in facts.items())
    )


if __name__ == "__main__":
    (ROOT / "settings.ini").write_text(text(ROOT), encoding="utf-8")
