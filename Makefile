# make demo      environment, both stages on the embedded cohort, new brains and a report of figures in runs/demo
# make plain     the same with one VQ-VAE of one level and one PixelCNN, without coarse codes: runs/plain
# make test      environment, linter, all tests
# make lint      ruff, notebooks too
# make notebook  runs notebooks/walkthrough.ipynb again, outputs kept
# make results   makes results/demo again (ten minutes), with DS=folder results/ds002748* (and MS=folder real lesions), with
#                IXI=folder results/ixi*, too
# make benchmarks   sampling times, training times, the leak, killed runs, and with IXI=folder or DS=folder
#                   codes, with IXI choices and a start from a trained run
# make peers     with IXI=folder: this project's VQ-VAE beside others, its samples beside those of a latent diffusion
#                model (an hour and a half; MONAI goes into runs/monai)
# make app       a page in the browser over the trained runs: draw, complete, upload a scan
# make figures   draws docs/figures/architecture.png and slices.png again
# make clean     removes the environment, the cache and the runs

PYTHON ?= python3
BIN := .venv/bin

# The runs behind the README.
IXI_RUN := --background black --vqvae-batch-size 16 --vqvae-epochs 56 --coarse-epochs 40 \
	--coarse-prior-epochs 42 --prior-epochs 11 --sharp-epochs 9
DS_RUN := --preset 1mm --num-slices 64 --slice-spacing 1 --vqvae-batch-size 16 --vqvae-epochs 40 --coarse-epochs 40 \
	--coarse-prior-epochs 43 --prior-batch-size 32 --prior-dropout 0.1 --prior-epochs 25 --sharp-epochs 40 --sharp-patience 40

# The same prior, told the slice below or above as well.
DS_HEADS := --num-slices 64 --slice-spacing 1 --neighbours --start-from runs/ds002748 --coarse-prior-epochs 24 \
	--prior-batch-size 32 --prior-epochs 14 --prior-learning-rate 0.003

# A short run of all stages, beside which make peers trains a latent diffusion model for as long.
PEERS_RUN := --background black --downsampling 8 --num-quantizers 4 --vqvae-batch-size 16 --vqvae-epochs 3 \
	--coarse-epochs 6 --coarse-prior-epochs 4 --prior-epochs 3 --sharp-epochs 1

# Trains all stages of a run of that name with these options.
define fit
	$(BIN)/python train.py --run-dir runs/$(1) $(2)
	$(BIN)/python train.py --run-dir runs/$(1) $(2) --stage sharp
endef

# Measures a run of the first name, with both decoders, into results/ under the second.
define measure
	$(BIN)/python evaluate.py --run-dir runs/$(1) --output-dir results/$(2) --decoder plain --num-samples 32 --num-heads 0
	$(BIN)/python evaluate.py --run-dir runs/$(1) --output-dir results/$(2)_sharp --decoder sharp
endef

# Completes and maps test people's slices.
define use
	$(BIN)/python -m benchmarks.anomaly --run-dir runs/$(1) --output results/$(2)/anomaly.json
	$(BIN)/python -m benchmarks.completion --run-dir runs/$(1) --output results/$(2)/completion.json
endef

.PHONY: demo plain test lint notebook results benchmarks peers app figures clean

demo: .venv/run
	$(BIN)/python train.py
	$(BIN)/python predict.py
	$(BIN)/python evaluate.py --num-samples 300

plain: .venv/run
	$(BIN)/python train.py --preset vqvae-2017 --run-dir runs/plain
	$(BIN)/python predict.py --run-dir runs/plain
	$(BIN)/python evaluate.py --run-dir runs/plain --num-samples 300

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: .venv/run
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/walkthrough.ipynb

results: demo
	$(BIN)/python evaluate.py --num-samples 300 --output-dir results/demo
	$(BIN)/python -m benchmarks.ventricles --run-dir runs/demo --output results/demo/ventricles.json
ifdef DS
	$(call fit,ds002748,--data-dir $(DS) $(DS_RUN))
	mkdir -p runs/heads
	cp $(foreach name,vqvae coarse autoencoder coarse_autoencoder,runs/ds002748/$(name).keras \
		runs/ds002748/$(name)_history.csv) runs/heads
	$(BIN)/python train.py --run-dir runs/heads --data-dir $(DS) $(DS_HEADS) --stage coarse_prior
	$(BIN)/python train.py --run-dir runs/heads --data-dir $(DS) $(DS_HEADS) --stage prior
	$(BIN)/python train.py --run-dir runs/heads --data-dir $(DS) $(DS_HEADS) --stage sharp
	$(call measure,ds002748,ds002748)
	$(BIN)/python evaluate.py --run-dir runs/heads --output-dir results/ds002748_heads --decoder sharp
	$(BIN)/python -m benchmarks.heads --run-dir runs/heads --output results/ds002748_heads/heads.json
	$(call use,heads,ds002748_heads)
ifdef MS
	$(BIN)/python -m benchmarks.anomaly --run-dir runs/ds002748 --lesions $(MS) --output results/ds002748/lesions.json
endif
	$(BIN)/python predict.py --run-dir runs/ds002748 --input examples/brain.nii.gz --output-dir results/using
	$(BIN)/python predict.py --run-dir runs/heads --volumes 6 --output-dir results/using
	rm -r results/using/brain results/using/inputs.html results/using/volumes results/using/volumes.gif results/using/volumes.html  # volumes
endif
ifdef IXI
	$(call fit,ixi,--data-dir $(IXI) $(IXI_RUN))
	$(call measure,ixi,ixi)
	$(call use,ixi,ixi_sharp)
endif
	rm results/*/report.html  # whose pictures and figures lie beside
	rm -f $(foreach name,bits codebook masks,results/*_sharp/$(name).png)  # those of the plain decoder
	rm -f $(foreach name,bits codebook masks reconstructions worst closest history positions spectrum,results/*_heads/$(name).png)
	$(BIN)/python -m benchmarks.tables

benchmarks: .venv/run
	$(BIN)/python -m benchmarks.sampling --output results/sampling.json --naive-steps 2
	$(BIN)/python -m benchmarks.leak --output results/leak/leak.json
	$(BIN)/python -m benchmarks.kills --output results/kills.json
	$(BIN)/python -m benchmarks.training --output results/training.json --seconds 5
ifdef IXI
	$(BIN)/python -m benchmarks.ablation --data-dir $(IXI) --minutes 1 --output results/ixi/ablation.json
	$(BIN)/python -m benchmarks.codes --cohort ixi --data-dir $(IXI) --output results/ixi/codes.json
	$(BIN)/python -m benchmarks.start --data-dir $(IXI) --output results/start.json
endif
ifdef DS
	$(BIN)/python -m benchmarks.codes --cohort ds002748 --data-dir $(DS) --output results/ds002748/codes.json
endif
	$(BIN)/python -m benchmarks.tables

peers: .venv/run runs/monai
	@test -n "$(IXI)" || { echo "make peers: give IXI=folder of the BIDS data set" >&2; exit 1; }
	$(BIN)/python -m benchmarks.peers --data-dir $(IXI) --output-dir results/peers --monai runs/monai/bin/python --minutes 2 10
	$(call fit,peers_ixi,--data-dir $(IXI) $(PEERS_RUN))
	$(BIN)/python -m benchmarks.generators --run-dir runs/peers_ixi --monai runs/monai/bin/python \
		--output results/peers/generators.json
	$(BIN)/python -m benchmarks.tables

app: .venv/app
	$(BIN)/python app.py

figures: .venv/run
	$(BIN)/python -m docs.figures

runs/monai: benchmarks/requirements-monai.txt
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --requirement $<

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

.venv/app: .venv/run requirements-app.txt
	$(BIN)/pip install --quiet --requirement requirements-app.txt
	touch $@

clean:
	rm -rf .venv cache runs
