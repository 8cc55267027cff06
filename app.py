# ruff: noqa: E402  (options are answered before TensorFlow is imported)
"""A page in the browser over trained runs: new slices, scans of one's own, completions, maps, stacks of slices.

    python app.py                                       # then open the address that it prints
    python app.py --run-dir runs/OASIS --port 7861      # another run first, another port

The page needs `requirements-app.txt` and no network. It listens on this machine alone, unless `--listen` says
otherwise. docs/app.md says what each tab does and where files go.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import html
import importlib.util
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from system import console
from system.console import UserError

ROOT = Path(__file__).parent


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(1, f"error: {message}\n")


def options(argv=None):
    """The options, checked; ends the process where they are wrong."""
    parser = _Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, help="the run that is shown first (default: the first of the list)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/app"), help="for files (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--listen", default="127.0.0.1", help="address; 0.0.0.0 lets other machines in (%(default)s)")
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: must be 1 to 65535")
    if args.run_dir and not (args.run_dir / "prior.keras").exists():
        parser.error(f"--run-dir {args.run_dir}: no trained run; it has no prior.keras")
    try:
        socket.create_server((args.listen, args.port or 0)).close()
    except (OSError, OverflowError) as error:
        where = args.listen if args.port is None else f"{args.listen}, port {args.port}"
        parser.error(f"{where}: {getattr(error, 'strerror', None) or error}")
    if not importlib.util.find_spec("gradio"):
        parser.error("gradio is not installed: pip install -r requirements-app.txt")
    return args


if __name__ == "__main__":
    console.prepare()
    options()  # --help and wrong options are answered here, before TensorFlow is imported, which takes seconds
with console.quietly():
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # which Gradio reads as it is imported
    import keras  # noqa: F401
import gradio as gr
import matplotlib
import numpy as np
import PIL.Image

import predict
from predict import TrainedModel
from system import devices

MOST_MB = 64  # of an uploaded file
FIRST = "pretrained/ds002748_heads"  # which also draws stacks of slices
EXAMPLE = ROOT / "examples/slice.png"
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events: the page says itself how far they are
SHOWN_SIDE = 448  # pixels of the slice that is painted on, about
HIGHEST_BITS, HIGHEST_MAP = 16, 4  # bits of a place, and values of a map, that have the brightest colour
CAUTION = (
    "The map shows what this model finds uncommon. That is also another scanner, a movement, a rare fold. "
    "**It finds no disease, and it is no diagnosis.**"
)
CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: auto}
.prose table {display: block; overflow-x: auto}
.prose p {overflow-wrap: anywhere}
@media (max-width: 640px) {
  .gradio-container .main {padding: 8px !important}
  .tab-container button {padding: 0 5px !important; font-size: 12px !important}
}
"""

worker = concurrent.futures.ThreadPoolExecutor(1)  # all work of models, one step at a time, whoever asks for it
output_dir = Path("runs/app")


# ----------------------------------------------------------------------------------------------------------------
# Runs, work, files
# ----------------------------------------------------------------------------------------------------------------


def runs(first=None):
    """Folders of trained runs by the name that the list shows, that of `first` on top."""
    found = [path.parent for kind in ("pretrained", "runs") for path in sorted(ROOT.glob(f"{kind}/*/prior.keras"))]
    named = {folder.relative_to(ROOT).as_posix(): folder for folder in found if (folder / "config.json").exists()}
    if first:
        named = {name: folder for name, folder in named.items() if folder.resolve() != first.resolve()}
        return {str(first): first} | named
    return {name: named[name] for name in sorted(named, key=lambda name: name != FIRST)}


@functools.lru_cache(maxsize=4)
def load(run, coarse_temperature=1.0, temperature=1.0):
    """A run's `TrainedModel`; called by the worker alone."""
    return TrainedModel(run, coarse_temperature=coarse_temperature, temperature=temperature)


@functools.lru_cache
def example(run):
    """A slice to begin with: the one of examples/ where it has the run's size, otherwise one that the run draws."""
    model = load(run)
    with PIL.Image.open(EXAMPLE) as image:
        if image.size == (model.image_size, model.image_size):
            return EXAMPLE
    labels, positions = model.conditions(1, slice_position=0.6)
    folder = new_folder("example")
    list(predict.write_samples(model.draw(labels, positions), model.told_of(labels, positions), folder / "samples"))
    return sample(folder, 0)


def new_folder(kind):
    """A folder for the files of one press of a button."""
    return Path(tempfile.mkdtemp(prefix=time.strftime(f"{kind}_%Y%m%d_%H%M%S_"), dir=output_dir))


def sample(folder, number):
    """Where `predict.write_samples` writes a sample."""
    return folder / "samples" / f"sample_{number:04d}.png"


def pack(folder):
    """All files of a folder as a zip file beside it."""
    return shutil.make_archive(folder, "zip", folder)


def working(make, number, outputs, show=None, halt=()):
    """Does `make()`, a generator, in the worker; yields Gradio's outputs, the first of which says how far it is.

    Where a person stops it or closes the page, what the worker has begun goes on up to the next item, and the rest is
    left.

    Args:
        make: Makes the generator.
        number: Of its items.
        outputs: How many there are beside the words.
        show: Makes those of the items so far; without it they stay as they are.
        halt: A list that Stop puts something into.

    Returns:
        The last words, and the items: fewer than `number` where it was stopped.
    """
    start, items, made = time.monotonic(), make(), []
    same = [gr.skip()] * outputs
    if halt:  # by a Stop while nothing was done
        halt.clear()
    try:
        while not halt:
            step = worker.submit(next, items, None)
            while not concurrent.futures.wait([step], 0.5).done and not halt:
                state = f"{len(made)} of {number}" if step.running() else "waiting for others"
                yield f"{state}, {time.monotonic() - start:.0f} s", *same
            if not step.done() or (item := step.result()) is None:
                break
            made.append(item)
            if show:
                yield f"{len(made)} of {number}", *show(made)
    except (UserError, OSError) as error:
        raise gr.Error(html.escape(console.in_a_line(error)), print_exception=False) from None
    finally:
        step.cancel()
        worker.submit(items.close)
    words = f"{len(made)} of {number}, {time.monotonic() - start:.0f} s"
    yield words + ", stopped" * (len(made) < number), *same
    return words, made


def coloured(values, colours, low, high):
    """Values (h, w) as RGB, uint8, by a colour map of Matplotlib."""
    shares = np.clip((values - low) / (high - low), 0, 1)
    return (matplotlib.colormaps[colours](shares)[..., :3] * 255).round().astype("uint8")


def grey(image):
    return (image * 255).round().astype("uint8")


def as_file(pixels, name):
    """A picture as a PNG file; of arrays Gradio would write the same file again while a browser reads it."""
    path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / f"{name}.png"
    PIL.Image.fromarray(pixels).save(path)
    return path


# ----------------------------------------------------------------------------------------------------------------
# What the buttons do
# ----------------------------------------------------------------------------------------------------------------


def choose(run):
    """A run is chosen: what it is, its labels, whether it draws stacks, its card; the scan read before is put aside."""

    def make():
        yield load(run)

    yield "reading the run", *[gr.skip()] * 5, None
    _, (model,) = yield from working(make, 1, 6)
    card = Path(run) / "MODEL_CARD.md"
    about = [f"trained on {model.about['trained_on']}", *(f"unfinished: {line}" for line in model.unfinished)]
    labels = gr.update(choices=["any", *model.labels], value="any", visible=bool(model.labels))
    alone = f"This run draws single slices. Choose **{FIRST}** above, or a run of train.py --neighbours."
    text = card.read_text(encoding="utf-8") if card.exists() else "This run has no MODEL_CARD.md."
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)  # the page serves no other file
    stacks = model.draws_heads
    yield "  \n".join(about), labels, labels, "" if stacks else alone, gr.update(interactive=stacks), text, None


def draw(halt, run, number, label, anywhere, height, coarse_temperature, temperature, seed):
    """New slices: how far it is, pictures, a zip file."""
    folder = new_folder("draw")

    def make():
        model = load(run, coarse_temperature, temperature)
        known, height_or_none = None if label == "any" else label, None if anywhere else height
        labels, positions = model.conditions(number, seed, known, height_or_none)
        told = model.told_of(labels, positions, seed)
        drawn = predict.write_samples(model.draw(labels, positions, seed), told, folder / "samples")
        for (i, _), row in zip(enumerate(drawn), told, strict=True):
            yield sample(folder, i), f"{row['label']} {float(row['slice_position']):.2f}".strip()

    yield "begun", [], gr.update(interactive=False)
    words, items = yield from working(make, number, 2, halt=halt)
    if len(items) == number:
        yield f"{words}: files are in {folder}", items, gr.update(value=pack(folder), interactive=True)


def read(run, path=None):
    """A file, or the example: how far it is, and the scan."""

    def make():
        try:
            scan = load(run).read(path or example(run))
            yield scan if path else dataclasses.replace(scan, name="Example")
        except UserError as error:
            raise UserError(str(error).replace(str(path), Path(path or EXAMPLE).name)) from error

    yield from working(make, 1, 1, lambda items: items)


def to_slices(scan):
    """A scan is read: for each tab with a scan its notices, and the slider of its slices."""
    if scan is None:
        return [gr.skip()] * 6
    number = len(scan.images)
    lines = [f"**{html.escape(scan.name)}**" + f", {number} slices" * (number > 1), *scan.notices]
    slider = gr.update(maximum=max(1, number - 1), value=round(0.6 * (number - 1)), visible=number > 1)
    return ["; ".join(lines), slider] * 3


def chosen(scan, number):
    """One slice of a scan, (1, S, S), and its position, None where it is not known."""
    if scan is None:
        raise gr.Error("there is no slice yet: wait for the run, or upload a scan", print_exception=False)
    part = slice(number := min(int(number), len(scan.images) - 1), number + 1)
    return scan.images[part], None if scan.slice_positions is None else scan.slice_positions[part]


def look(run, scan, number):
    """A slice through the codes: how many bits, input, reconstruction, difference, bits by place."""
    image, position = chosen(scan, number)

    def make():
        model = load(run)
        output, bits = model.decode(model.encode(image))[0], model.bits(image, None, position)[0][0].sum(axis=-1)
        side = len(output) // len(bits)
        pictures = {
            "input": grey(image[0]),
            "reconstruction": grey(output),
            "difference": coloured(output - image[0], "seismic", -0.5, 0.5),
            "bits": coloured(bits.repeat(side, axis=0).repeat(side, axis=1), "magma", 0, HIGHEST_BITS),
        }
        yield f"{bits.mean():.2f} bits a place", *(as_file(pixels, name) for name, pixels in pictures.items())

    _, (found,) = yield from working(make, 1, 4)
    yield found


def to_editor(scan, number):
    """A slice to paint on, enlarged."""
    if scan is None:
        return None
    side = SHOWN_SIDE // max(1, scan.images.shape[1]) or 1
    pixels = grey(chosen(scan, number)[0][0]).repeat(side, axis=0).repeat(side, axis=1)
    return {"background": as_file(pixels, "slice"), "layers": [], "composite": None}


def to_empty_editor(scan, number, painted):
    """The tab is opened: the slice, which a browser does not show before, unless one has painted already."""
    if painted and any(layer[..., 3].any() for layer in painted["layers"]):
        return gr.skip()
    return to_editor(scan, number)


def complete(halt, run, scan, number, painted, draws, seed):
    """What may lie under the paint, draw after draw: how far it is, pictures, a zip file."""
    image, position = chosen(scan, number)
    size = image.shape[1:]
    layers = [PIL.Image.fromarray(layer[..., 3]) for layer in (painted or {}).get("layers", ())]
    mask = np.zeros(size, bool)
    for layer in layers:
        mask |= np.asarray(layer.resize(size, PIL.Image.Resampling.BOX)) > 127
    if not mask.any():
        raise gr.Error("paint over a part of the slice first", print_exception=False)
    folder = new_folder("completion")
    PIL.Image.fromarray(grey(image[0])).save(folder / "input.png")
    PIL.Image.fromarray(mask).save(folder / "mask.png")

    def make():
        model = load(run)
        told = {"input": scan.path.name, "slice": scan.numbers[int(number)], "hidden": f"{mask.mean():.4f}"}
        rows = [{**told, "seed": seed + i, "number": i, **model.about} for i in range(draws)]
        drawn = (model.complete(image[0], mask, 1, seed + i, None, position) for i in range(draws))
        for i, _ in enumerate(predict.write_samples(drawn, rows, folder / "samples")):
            yield sample(folder, i), f"draw {i + 1}"

    yield "begun", [], gr.update(interactive=False)
    words, items = yield from working(make, draws, 2, lambda items: (list(items), gr.skip()), halt)
    if len(items) == draws:
        yield f"{words}: files are in {folder}", items, gr.update(value=pack(folder), interactive=True)


def uncommon(halt, run, scan, number):
    """A map over a slice: how far it is, the slice, the slice with its map."""
    image, position = chosen(scan, number)
    before = as_file(grey(image[0]), "slice")

    def make():
        found = load(run).anomaly_map(image, slice_position=position)[0]
        share = np.clip(found / HIGHEST_MAP, 0, 1)[..., None]
        over = (1 - share) * grey(image[0])[..., None] + share * coloured(found, "autumn", 0, HIGHEST_MAP)
        yield before, as_file(over.round().astype("uint8"), "map")

    yield "begun", before, None
    yield from working(make, 1, 2, lambda items: items[0], halt)


def brain(halt, run, label, seed):
    """A stack of slices: how far it is, the stack with its voxels' size, its three sliders, a NIfTI file."""
    path = new_folder("brain") / "brain.nii.gz"

    def make():
        model = load(run)
        head = next(model.sample_heads(1, seed, None if label == "any" else label, batch_size=1))[0]
        model.write_head(head, path)
        yield head, model.voxel_mm

    yield "begun", None, *[gr.skip()] * 3, gr.update(interactive=False)
    words, items = yield from working(make, 1, 5, halt=halt)
    for drawn in items:
        sliders = [gr.update(maximum=size - 1, value=size // 2) for size in drawn[0].shape]
        yield f"{words}: {path}", drawn, *sliders, gr.update(value=path, interactive=True)


def cut(axis, drawn, number):
    """A stack of slices cut along one of its axes, the head's top or front above."""
    if drawn is None:
        return None
    head, (across, _, between) = drawn
    plane = head.take(min(int(number), head.shape[axis] - 1), axis=axis)
    if axis:  # the lowest slice below, pixels as long as wide
        size = plane.shape[1], round(len(plane) * between / across)
        plane = np.asarray(PIL.Image.fromarray(plane[::-1]).resize(size))
    return as_file(plane, ("axial", "coronal", "sagittal")[axis])


# ----------------------------------------------------------------------------------------------------------------
# The page
# ----------------------------------------------------------------------------------------------------------------


def picture(label):
    return gr.Image(label=label, format="png", interactive=False, buttons=["download"], min_width=150)


def results(label):
    """Pictures, and a button to download them."""
    gallery = gr.Gallery(label=label, columns=4, object_fit="contain", buttons=["fullscreen"])
    return gallery, gr.DownloadButton("Download all: PNG and CSV", interactive=False)


def seed_slider():
    return gr.Slider(0, 999, 0, step=1, label="Seed: another number, another result", min_width=240)


def label_choice():
    return gr.Radio(["any"], value="any", label="Label", visible=False, min_width=240)


def buttons(name):
    """A button that starts, one that stops, and how far it is."""
    with gr.Row():
        start, stop = gr.Button(name, variant="primary", min_width=120), gr.Button("Stop", min_width=80)
    return start, stop, gr.Markdown()


def connect(controls, do, inputs, outputs):
    """Of `buttons`: what they start and stop."""
    (start, stop, words), halt = controls, gr.State([])
    start.click(do, [halt, *inputs], [words, *outputs], **QUIET)
    stop.click(lambda halt: halt.append("stop"), halt, None, queue=False, **QUIET)


def scan_row():
    """Where a scan is chosen: buttons to upload one or take the example, what was read, the slider of its slices."""
    with gr.Row():
        upload = gr.UploadButton(f"Upload a scan: image or NIfTI, up to {MOST_MB} MB", size="sm", min_width=150)
        again = gr.Button("Example", size="sm", min_width=80)
    return upload, again, gr.Markdown(), gr.Slider(0, 1, 0, step=1, label="Slice", visible=False)


def page(named):
    """The Gradio page of some runs by name, the first of them shown first."""
    with gr.Blocks(title="Brain VQ-VAE", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown("# New brains from a discrete representation\nWhat is drawn here is no person. Not for diagnosis.")
        choices = [(name, str(folder)) for name, folder in named.items()]
        run = gr.Dropdown(choices, value=choices[0][1], label="Trained run")
        about, scan, head = gr.Markdown(), gr.State(), gr.State()

        with gr.Tab("Draw"):
            with gr.Row():
                number = gr.Slider(1, 32, 8, step=1, label="How many", min_width=240)
                height = gr.Slider(
                    0, 1, 0.6, step=0.01, label="Height: 0 the lowest slice, 1 the highest", min_width=240
                )
                anywhere = gr.Checkbox(False, label="Heights as in training", min_width=240)
            label = label_choice()
            with gr.Row():
                coarse = gr.Slider(
                    0.5, 1.2, 1, step=0.05, label="Temperature of shapes: below 1 more alike", min_width=240
                )
                fine = gr.Slider(0.5, 1.2, 1, step=0.05, label="Temperature of texture: below 1 poorer", min_width=240)
                seed = seed_slider()
            controls, shown = buttons("Draw"), results("New slices")
            connect(controls, draw, [run, number, label, anywhere, height, coarse, fine, seed], shown)

        with gr.Tab("Your scan") as scan_tab:
            rows, words = [scan_row()], gr.Markdown()
            with gr.Row():
                names = "Input", "Reconstruction", "Difference: red is too bright", "Bits: bright is unexpected"
                looked = [run, scan, rows[0][-1]], [words, *(picture(name) for name in names)]

        with gr.Tab("Complete") as complete_tab:
            rows.append(scan_row())
            gr.Markdown("**Paint over the slice** where the model shall draw anew, then press *Complete*.")
            brush = gr.Brush(40, colors=["#ff5a36"], default_color="#ff5a36", color_mode="fixed")
            how = {"format": "png", "height": 560, "sources": (), "transforms": (), "layers": False, "buttons": []}
            editor = gr.ImageEditor(label="Slice", brush=brush, canvas_size=(SHOWN_SIDE, SHOWN_SIDE), **how)
            with gr.Row():
                draws, seed = gr.Slider(1, 8, 4, step=1, label="How many draws", min_width=240), seed_slider()
            controls, shown = buttons("Complete"), results("Completions")
            connect(controls, complete, [run, scan, rows[1][-1], editor, draws, seed], shown)

        with gr.Tab("Uncommon"):
            rows.append(scan_row())
            gr.Markdown(CAUTION)
            controls = buttons("Map")
            with gr.Row():
                shown = picture("Slice"), picture("Slice with its map")
            connect(controls, uncommon, [run, scan, rows[2][-1]], shown)

        with gr.Tab("Brain"):
            alone = gr.Markdown()
            gr.Markdown("Draws a stack of slices of one head, of no person. It lacks the top and the lowest part.")
            with gr.Row():
                of_stack, seed = label_choice(), seed_slider()
            controls, planes = buttons("Draw a stack"), []
            with gr.Row():
                for axis, name in enumerate(("Axial", "Coronal", "Sagittal")):
                    with gr.Column(min_width=200):
                        image, slider = picture(name), gr.Slider(0, 1, 0, step=1, label=f"{name} slice")
                    do, how = functools.partial(cut, axis), {"queue": False, "trigger_mode": "always_last", **QUIET}
                    gr.on([slider.change, head.change], do, [head, slider], image, **how)
                    planes.append(slider)
            file = gr.DownloadButton("Download NIfTI", interactive=False)
            connect(controls, brain, [run, of_stack, seed], [head, *planes, file])

        with gr.Tab("Card"):
            card = gr.Markdown()

        def then_shown(event):
            """After a scan is read: its notices, its sliders, the slice to paint on."""
            event = event.then(to_slices, scan, [part for row in rows for part in row[2:]], **QUIET)
            return event.then(to_editor, [scan, rows[1][-1]], editor, **QUIET)

        for upload, again, notes, _ in rows:
            read_one = then_shown(upload.upload(read, [run, upload], [notes, scan], **QUIET))
            read_again = then_shown(again.click(read, run, [notes, scan], **QUIET))
            if notes is rows[0][2]:
                for event in (scan_tab.select, rows[0][-1].release, read_one.then, read_again.then):
                    event(look, *looked, **QUIET)
        rows[1][-1].release(to_editor, [scan, rows[1][-1]], editor, **QUIET)
        complete_tab.select(to_empty_editor, [scan, rows[1][-1], editor], editor, **QUIET)
        chosen_run = about, label, of_stack, alone, controls[0], card, scan
        for event in (blocks.load, run.change):
            event = event(choose, run, chosen_run, **QUIET).then(read, run, [rows[0][2], scan], **QUIET)
            then_shown(event)
        event.then(look, *looked, **QUIET)  # after another run is chosen
    return blocks


def serve(args):
    global output_dir
    named = runs(args.run_dir)
    if not named:
        raise UserError("no trained run in pretrained/ or runs/: run train.py first, or give --run-dir")
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uploads_", dir=output_dir) as uploads, devices.whole_float32():
        os.environ["GRADIO_TEMP_DIR"] = uploads
        worker.submit(load, str(next(iter(named.values()))))
        fonts = {"font": ["Helvetica", "Arial", "sans-serif"], "font_mono": ["Consolas", "monospace"]}
        blocks = page(named).queue(default_concurrency_limit=8)
        blocks.launch(
            server_name=args.listen,
            server_port=args.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(output_dir)],
            max_file_size=f"{MOST_MB}mb",
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Default(**fonts),
            head=f"<style>{CSS}</style>",
        )
        try:
            print(f"open {blocks.local_url} in a browser; files go to {output_dir}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)


def main(argv=None):
    return console.exit_status(lambda: serve(options(argv)), "stopped")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # what the worker has begun does not hold the process
