# make demo      environment, both stages on the embedded cohort, new brains in runs/demo/predictions
# make test      environment, linter, all tests
# make lint      ruff, notebooks too
# make notebook  runs notebooks/walkthrough.ipynb again, outputs kept
# make results   makes results/demo, and results/ixi where IXI=folder is given, again
# make clean     removes the environment, the cache and the runs

PYTHON ?= python3
BIN := .venv/bin

IXI_RUN := --run-dir runs/ixi --vqvae-epochs 24 --prior-epochs 5 --prior-filters 64

.PHONY: demo test lint notebook results clean

demo: .venv/run
	$(BIN)/python train.py
	$(BIN)/python predict.py
	@echo "look at runs/demo/predictions/samples.png"

test: lint
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: .venv/run
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/walkthrough.ipynb

results: demo
	$(BIN)/python predict.py --run-dir runs/demo --num-samples 32 --output-dir results/demo
	rm -r results/demo/samples
ifdef IXI
	$(BIN)/python train.py --data-dir $(IXI) $(IXI_RUN)
	$(BIN)/python predict.py --run-dir runs/ixi --num-samples 32 --output-dir results/ixi
	rm -r results/ixi/samples
endif

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv cache runs
