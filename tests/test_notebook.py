"""The notebook runs from top to bottom, on a toy of its run, and what is stored in it is of the demo."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
from conftest import command
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
WALK = ROOT / "notebooks" / "walkthrough.ipynb"

FOUR_SLICES = "from using import heads\nheads.positions = lambda model: np.linspace(0, 1, 4, dtype='float32')\n"


def outputs():
    """Outputs of the notebook as it is stored."""
    return [output for cell in nbformat.read(WALK, as_version=4).cells for output in cell.get("outputs", ())]


def stored_pictures():
    return [output for output in outputs() if "image/png" in output.get("data", {})]


def test_the_stored_walk_is_that_of_the_demo():
    """Its SSIM and bits are those of results/demo, to two digits; no warnings, no lists of Matplotlib's objects."""
    said = "".join(output["text"] for output in outputs() if output.get("name") == "stdout")
    found = re.search(r"SSIM ([\d.]+), inside the head ([\d.]+), ([\d.]+) bits per code", said)
    demo = json.loads((ROOT / "results" / "demo" / "metrics.json").read_text())
    wanted = [demo["reconstruction"][name]["mean"] for name in ("ssim", "ssim_head")] + [demo["prior"]["bits_per_code"]]
    np.testing.assert_allclose([float(number) for number in found.groups()], wanted, atol=0.005)
    for output in outputs():
        assert output.get("name") != "stderr", output["text"]
        assert "[Text(" not in output.get("data", {}).get("text/plain", "")
    assert len(stored_pictures()) > 20


def test_the_walkthrough_runs(monkeypatch, trained_run):
    monkeypatch.setenv("RUN_DIR", str(trained_run / "run"))
    few = {"coarse_epochs": 1, "vqvae_epochs": 1}
    monkeypatch.setenv("TRAIN_OPTIONS", " ".join(command(trained_run, "notebook", "--stage", "vqvae", **few)))
    notebook = nbformat.read(WALK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("(0.5, 0.8, 1.0, 1.2)", "(0.5, 1.2)")  # temperatures
        cell.source = cell.source.replace("stack = next(", FOUR_SLICES + "stack = next(")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == len(stored_pictures())
