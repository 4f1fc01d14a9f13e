"""Write nbs/images/hero.png, the picture at the top of the README: what the cell of 00 marked `#|
hero` showed last."""

import base64
from house import ROOT, page, read


def hero(root):
    "The PNG bytes of that picture; None while 00 stores none."
    cells = read(page("00_sixty_seconds", root))["cells"]
    shown = [
        o["data"]["image/png"]
        for c in cells
        if "".join(c["source"]).startswith("#| hero")
        for o in c["outputs"]
        if "image/png" in o.get("data", {})
    ]
    return base64.b64decode("".join(shown[-1])) if shown else None


if __name__ == "__main__":
    if picture := hero(ROOT):
        (ROOT / "nbs" / "images").mkdir(exist_ok=True)
        (ROOT / "nbs" / "images" / "hero.png").write_bytes(picture)
