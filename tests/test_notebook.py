"""The notebook runs from top to bottom, on a toy of its run: few people, small slices, one epoch."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

import phantom

ROOT = Path(__file__).parent.parent


def test_the_walkthrough_runs(monkeypatch, tmp_path):
    phantom.make_cohort(tmp_path / "cohort", num_people=10)
    paths = f"--data-dir {tmp_path / 'cohort'} --run-dir {tmp_path / 'run'} --cache-dir {tmp_path / 'cache'}"
    sizes = "--image-size 64 --downsampling 8 --vqvae-epochs 1 --prior-epochs 1 --prior-filters 8 --prior-num-blocks 2"
    sizes += " --layout-epochs 1 --layout-prior-epochs 1 --layout-prior-filters 8"
    monkeypatch.setenv("TRAIN_OPTIONS", f"{paths} {sizes} --base-filters 8 --prior-attention-every 1")
    notebook = nbformat.read(ROOT / "notebooks" / "walkthrough.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 17
