"""What the pages tell a reader to type works: every command is understood, and those that need no data are run."""

import dataclasses
import functools
import json
import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

import predict
from running import options
from using import anomaly, heads, scans

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("pretrained/**/*.md")]
)
SHORTER = [  # of Python blocks
    (r"sample\(4", "sample(1"),
    (r"mask, 8\)", "mask, 1)"),
    (r"sample_heads\(2\)", "sample_heads(1)"),
    (r'"runs/mine', '"{folder}/out'),
]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page):
    """The programs that a page calls, and what they are given."""
    whole = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    found = re.findall(
        r"(?:^|&& )(?:[A-Z_]+=\S+ )?python (predict|train|evaluate)\.py((?: [^&\n]+)?)", whole, re.MULTILINE
    )
    return [(program, shlex.split(given, comments=True)) for program, given in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_is_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pretrained", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name in ("OASIS", "ADNI", "DATA", "FOLDER", "HCP", "BRATS", "MINE", "IXI", "DS002748", "ds002748"):
        (tmp_path / name).mkdir()
    for program, given in commands(page):
        if program != "train" and not Path(given[given.index("--run-dir") + 1]).exists():  # made by those before
            run_dir = Path(given[given.index("--run-dir") + 1])
            run_dir.mkdir(parents=True)
            config = json.loads((ROOT / "pretrained" / "ds002748" / "config.json").read_text())
            config["data"]["labels"] = ["AD", "NC"]
            (run_dir / "config.json").write_text(json.dumps(config))
        getattr(options, program)(given)


def test_every_picture_stands_on_a_page():
    pages = [*PAGES, ROOT / "results" / "README.md"]
    shown = {
        (page.parent / path).resolve()
        for page in pages
        for path in re.findall(r"\]\(([^)#]+\.(?:png|gif))\)", page.read_text(encoding="utf-8"))
    }
    pictures = {path.resolve() for folder in ("results", "docs") for path in (ROOT / folder).rglob("*.png")}
    assert pictures - shown == set()


@functools.cache
def load(run_dir, kind=predict.TrainedModel):
    return kind(ROOT / run_dir)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """In the project's folder; a run is loaded once, of a volume two slices are taken, and a map is of one draw."""
    once = types.SimpleNamespace(from_pretrained=lambda name: load(f"pretrained/{name}"))
    monkeypatch.setattr(predict, "TrainedModel", lambda run_dir, *_: load(str(run_dir)))

    def read(*what, whole=scans.read):
        scan = whole(*what)
        if scan.grid is None:
            return scan
        two = {name: getattr(scan, name)[:2] for name in ("images", "slice_positions", "numbers")}
        return dataclasses.replace(scan, **two)

    monkeypatch.setattr(scans, "read", read)
    restore_codes = anomaly.restore_codes
    monkeypatch.setattr(anomaly, "restore_codes", lambda *what, **_: restore_codes(*what[:6], number=1))
    monkeypatch.setattr(heads, "positions", lambda model: np.linspace(0, 1, 2, dtype="float32"))
    monkeypatch.chdir(ROOT)
    return once


def test_what_needs_no_data_runs(tmp_path, quick):
    pages, done = (ROOT / "README.md", ROOT / "docs" / "using.md"), []
    for program, given in (call for page in pages for call in commands(page)):
        if program == "predict" and "pretrained/" in " ".join(given) and given not in done:
            done.append(list(given))
            for option, value in (("--num-samples", 1), ("--volumes", 1), ("--output-dir", tmp_path / "out")):
                if option in given:
                    given[given.index(option) + 1] = str(value)
                elif option == "--output-dir":
                    given += [option, str(value)]
            assert predict.main(given) == 0, given
    assert len(done) >= 6
    for block in (block for page in pages for block in blocks(page, "python")):
        block = block.replace("from predict import TrainedModel", "")
        for pattern, short in SHORTER:
            block = re.sub(pattern, short.format(folder=tmp_path), block)
        exec(compile(block, "a page", "exec"), {"TrainedModel": quick})


@pytest.mark.parametrize("card", sorted(ROOT.glob("pretrained/*/MODEL_CARD.md")), ids=lambda card: card.parent.name)
def test_a_card_says_what_the_run_is(card):
    _, head, text = card.read_text(encoding="utf-8").split("---\n", 2)
    head, config = yaml.safe_load(head), json.loads((card.parent / "config.json").read_text())
    assert head["library_name"] == "keras"
    assert {"vq-vae", "pixelcnn", "brain-mri"} <= set(head["tags"])
    assert head["license"].replace("-", " ").removesuffix(" 1.0").upper() in text.replace("-", " ").upper()
    assert any(word in config["data"]["title"] or word in text for word in head["datasets"])
    sizes, size = config["models"], config["data"]["image_size"]
    grid, entries = size // sizes["vqvae"]["downsampling"], sizes["vqvae"]["num_embeddings"]
    levels = sizes["vqvae"].get("num_quantizers", 1)
    assert f"float32 in [0, 1], {size} × {size}" in text
    assert f"| codes | int32, {grid} × {grid} × {levels}, of {entries} entries; coarse codes 8 × 8 × 1, of 64 |" in text
    for label in config["data"]["labels"]:
        assert f"`{label}`" in text
    assert ", ".join(f"{name} {version}" for name, version in config["versions"].items()) in text
    (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
    assert (card.parent / picture).exists()
