"The command line: `python -m ect_nb`."

import importlib
import sys

ROOM = {"grade": "course.grade", "contest": "course.contest"}  # what a teacher asks for


def main():
    if sys.argv[1:2] and (module := ROOM.get(sys.argv[1])):
        return importlib.import_module(f"ect_nb.{module}").shell(sys.argv[2:])
    from .commands import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
