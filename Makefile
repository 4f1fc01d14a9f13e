# ect_nb. `make help` lists the targets; tools/setup.py makes .venv for all of them.
PY := .venv/bin/python
NAMES :=
ARGS :=
.DEFAULT_GOAL := help
.PHONY: help setup lab test thorough tour site bench class stick gates notebooks sync lock

help:       ## list what make can do
	@sed -n 's/^\([a-z]*\): .*## /make \1\t/p' Makefile | expand -t 18

setup:      ## make .venv from requirements.lock (the other targets do this; instant when nothing changed)
	@for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null && exec $$p tools/setup.py; done; \
	echo 'setup: no Python was found: install Python 3.11 to 3.14 (Debian and Ubuntu: apt-get install python3 python3-venv) and run make again.' >&2; exit 1

lab: setup       ## open JupyterLab on 00_sixty_seconds (ARGS="--port 9000" goes to JupyterLab)
	@$(PY) tools/lab.py $(ARGS)

test: setup      ## everything that must pass: gates, notebooks, pytest
	$(PY) tools/gates.py
	OMP_NUM_THREADS=1 .venv/bin/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/test_browser.py $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_browser.py $(ARGS) || [ $$? -eq 5 ]

thorough: setup  ## make test, and then the tests that are marked slow
	@$(MAKE) --no-print-directory test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

tour: setup      ## run 00_sixty_seconds without a browser; table here, pictures and page in out/tour
	$(PY) tools/run_notebooks.py 00_sixty_seconds --html out/tour --pictures out/tour

site: setup      ## build the site in out/site/html, offline (npm is asked once, for what runs a model in a page)
	$(PY) tools/website.py $(ARGS)

bench: setup     ## measure the speed of training and sampling on this machine (the CIFAR-10 network too: ARGS=--cifar)
	$(PY) bench/bench.py $(ARGS)

class: setup     ## copies for a class in out/class: student.zip (without answers) and teacher (solved)
	$(PY) tools/exercises.py class out/class

stick: setup     ## wheels for three systems in out/stick, for laptops without a network
	$(PY) tools/students.py --gather out/stick

gates: setup     ## check the form of notebooks, package and files (seconds)
	@$(PY) tools/gates.py

notebooks: setup ## run the notebooks and store their outputs (all, or NAMES="01_noise 02_diffusion")
	$(PY) tools/run_notebooks.py $(NAMES) --save
	@$(MAKE) --no-print-directory sync

sync: setup      ## write what is derived: package from notebooks, address, settings.ini, README.md
	$(PY) tools/setup_cell.py
	$(PY) tools/address.py
	$(PY) tools/form.py
	.venv/bin/nbdev-export
	.venv/bin/nbdev-clean
	$(PY) tools/settings.py
	$(PY) tools/hero.py
	$(PY) tools/readme.py
	$(PY) tools/teaching.py

lock: setup      ## write requirements.lock anew with the newest versions
	$(PY) tools/lock.py
