"""The pictures of a run. Every function writes one PNG, with the data's title and credit under it."""

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.transform import resize

from reading.decoding import PLANES, to_volume
from system.files import write_whole

GREY = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}


def finish(figure, path, footer):
    """Writes a figure with the footer under it."""
    figure.supxlabel(footer, fontsize=7, color="0.35", wrap=True)
    write_whole(path, lambda partial: figure.savefig(partial, dpi=130, facecolor="white"))


def _image_axes(rows, columns, size=1.5):
    figure = Figure(figsize=(size * columns + 0.6, size * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def reconstructions(path, images, outputs, titles, footer):
    """Input, outputs and the difference of the last of them, a column for each slice.

    Args:
        images: Float in [0, 1], shape (n, height, width).
        outputs: A row of such images for each name.
        titles: One line above each column.
    """
    figure, axes = _image_axes(2 + len(outputs), len(images))
    for row, (name, shown) in zip(axes, {"input": images, **outputs}.items(), strict=False):
        row[0].set_ylabel(name)
        for axis, image in zip(row, shown, strict=True):
            axis.imshow(image, **GREY)
    for axis, image, output, title in zip(axes[-1], images, shown, titles, strict=True):
        difference = axis.imshow(output - image, cmap="RdBu_r", vmin=-0.3, vmax=0.3, interpolation="nearest")
        axis.set_xlabel(title, fontsize=7)
    axes[-1, 0].set_ylabel(f"{name} - input")
    figure.colorbar(difference, ax=axes[-1, :], label="intensity", fraction=0.02)
    finish(figure, path, footer)


def inputs(path, images, outputs, bits, titles, footer):
    """Scans of one's own, a row each: input, reconstruction, their difference, bits of each place."""
    figure, axes = _image_axes(len(images), 4, 1.9)
    most = max(1.0, *(one.max() for one in bits))
    for row, image, output, of_codes, title in zip(axes, images, outputs, bits, titles, strict=True):
        row[0].imshow(image, **GREY)
        row[1].imshow(output, **GREY)
        difference = row[2].imshow(output - image, cmap="RdBu_r", vmin=-0.3, vmax=0.3, interpolation="nearest")
        told = row[3].imshow(of_codes, cmap="magma", vmin=0, vmax=most, interpolation="nearest")
        row[0].set_ylabel(title, fontsize=8)
    for axis, name in zip(axes[0], ("input", "reconstruction", "difference", "bits of each place"), strict=True):
        axis.set_title(name, fontsize=9)
    figure.colorbar(difference, ax=axes[:, 2], location="bottom", label="intensity", fraction=0.05)
    figure.colorbar(told, ax=axes[:, 3], location="bottom", label="bits", fraction=0.05)
    finish(figure, path, footer)


def completions(path, image, mask, drawn, footer):
    """A slice with the outline of a mask, and what was drawn under it: float in [0, 1], shape (n, S, S)."""
    shown = [image, np.where(mask, 0.5, image), *drawn]
    titles = ["input", "what was known", *(f"draw {i}" for i in range(len(drawn)))]
    columns = min(8, len(shown))
    figure, axes = _image_axes(-(-len(shown) // columns), columns)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, one, title in zip(axes.flat, shown, titles, strict=False):
        axis.imshow(one, **GREY)
        axis.contour(mask, levels=[0.5], colors="tab:orange", linewidths=0.6)
        axis.set_title(title, fontsize=7)
    finish(figure, path, f"under the outline: made by the model\n{footer}")


def anomalies(path, images, maps, titles, footer):
    """Slices above the maps of what is uncommon in them, a column each."""
    figure, axes = _image_axes(2, len(images), size=max(1.7, 4 / len(images)))
    most = max(found.max() for found in maps)
    for column, (image, found, title) in enumerate(zip(images, maps, titles, strict=True)):
        axes[0, column].imshow(image, **GREY)
        axes[0, column].set_title(title, fontsize=6)
        shown = axes[1, column].imshow(found, cmap="magma", vmin=0, vmax=most, interpolation="nearest")
    axes[0, 0].set_ylabel("input")
    axes[1, 0].set_ylabel("uncommon")
    figure.colorbar(shown, ax=axes[1, :], label="intensity x bits", fraction=0.05)
    finish(figure, path, f"what this model finds uncommon; it finds no disease\n{footer}")


def closest_pairs(path, samples, training, titles, footer):
    """Samples above the training slices most like them, a column for each pair."""
    figure, axes = _image_axes(2, len(samples))
    for column, (sample, other, title) in enumerate(zip(samples, training, titles, strict=True)):
        axes[0, column].imshow(sample, **GREY)
        axes[1, column].imshow(other, **GREY)
        axes[0, column].set_title(title, fontsize=7)
    for axis, name in zip(axes[:, 0], ("sample", "training slice"), strict=True):
        axis.set_ylabel(name)
    finish(figure, path, footer)


def image_grid(path, images, titles, footer, columns=8, row_names=None):
    """Images in a grid, float in [0, 1], shape (n, height, width), each under its title."""
    columns = min(columns, len(images))
    figure, axes = _image_axes(-(-len(images) // columns), columns)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, **GREY)
        axis.set_title(title, fontsize=7)
    for axis, name in zip(axes[:, 0], row_names or (), strict=False):
        axis.set_ylabel(name)
    finish(figure, path, footer)


def masks(path, images, outlined, titles, footer):
    """Slices with the outline of their masks, bool, shape (n, height, width)."""
    figure, axes = _image_axes(1, len(images))
    for axis, image, mask, title in zip(axes.flat, images, outlined, titles, strict=True):
        axis.imshow(image, **GREY)
        if mask.any():
            axis.contour(mask, levels=[0.5], colors="tab:orange", linewidths=0.8)
        axis.set_title(title, fontsize=7)
    finish(figure, path, footer)


def spectrum(path, ratios, footer):
    """Power over that of test slices in rings of the frequency plane, a line for each set; `ratios` by name."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, values in ratios.items():
        middle = (np.arange(len(values)) + 0.5) / len(values)
        axis.plot(middle, np.array(values, float), marker="o", label=name)  # a ring without power is a gap
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(xlabel="spatial frequency, share of Nyquist", ylabel="power / power of test slices", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    finish(figure, path, footer)


def bits(path, mean, images, maps, titles, footer):
    """Bits of each place of the grid, (h, w): the mean over slices, then single slices above their own maps."""
    figure, axes = _image_axes(2, len(images) + 1)
    style = {"cmap": "magma", "vmin": 0, "vmax": max(1.0, *(np.max(one) for one in maps)), "interpolation": "nearest"}
    axes[0, 0].axis("off")
    axes[1, 0].imshow(mean, **style)
    axes[1, 0].set_xlabel(f"mean, {mean.mean():.2f} a place", fontsize=7)
    for column, (image, one, title) in enumerate(zip(images, maps, titles, strict=True), 1):
        axes[0, column].imshow(image, **GREY)
        axes[0, column].set_title(title, fontsize=7)
        shown = axes[1, column].imshow(one, **style)
        axes[1, column].set_xlabel(f"{one.sum():.0f} bits", fontsize=7)
    figure.colorbar(shown, ax=axes[1, :], label="bits a place", fraction=0.02)
    finish(figure, path, footer)


def codebook(path, codes, num_embeddings, footer):
    """Use of each code on the test slices, most used first, by level; where in the grid those of the first vary.

    Args:
        codes: Integers in [0, num_embeddings), shape (n, h, w, D).
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for level in range(codes.shape[-1]):
        counts = np.sort(np.bincount(np.ravel(codes[..., level]), minlength=num_embeddings))[::-1]
        label = f"level {level + 1}" if codes.shape[-1] > 1 else None
        left.step(
            np.arange(num_embeddings),
            counts / counts.sum(),
            where="mid",
            color=f"{0.2 + 0.6 * level / codes.shape[-1]:.2f}",
            label=label,
        )
    left.axhline(1 / num_embeddings, color="tab:red", linewidth=0.8, label="even use")
    left.set(xlabel="code, most used first", ylabel="share of the codes", yscale="log")
    left.legend(frameon=False)
    first = codes[..., 0]
    different = np.array(
        [[len(np.unique(first[:, r, c])) for c in range(first.shape[2])] for r in range(first.shape[1])]
    )
    shown = right.imshow(different, cmap="viridis", interpolation="nearest")
    right.set(xlabel="column of the grid", ylabel="row of the grid", title="different codes at each place")
    figure.colorbar(shown, ax=right, label="codes")
    finish(figure, path, footer)


def variances(path, shares, footer):
    """How z_e varies: the share of its variance in each principal direction, largest first, a line for each name."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, of_directions in shares.items():
        axis.plot(np.arange(1, len(of_directions) + 1), of_directions, marker="o", markersize=3, label=name)
    axis.set(xlabel="principal direction of z_e", ylabel="share of the variance", yscale="log")
    axis.legend(frameon=False, fontsize=7)
    finish(figure, path, footer)


def history(path, stages, footer):
    """Training curves, from the rows of the history of each stage, by its name."""
    curves = [
        ("vqvae", "reconstruction_loss", "VQ-VAE, reconstruction loss", "log"),
        ("vqvae", "ssim", "VQ-VAE, SSIM", "linear"),
        ("vqvae", "psnr_db", "VQ-VAE, PSNR (dB)", "linear"),
        ("vqvae", "perplexity", "perplexity of the codes", "linear"),
        ("coarse", "reconstruction_loss", "coarse codes, reconstruction loss", "log"),
        ("coarse_prior", "bits_per_code", "prior of coarse codes, bits per code", "linear"),
        ("prior", "bits_per_code", "prior, bits per code", "linear"),
        ("sharp", "least_power", "sharp, least power kept in a band", "linear"),
    ]
    measured = {stage: set().union(*rows) for stage, rows in stages.items()}
    curves = [curve for curve in curves if f"val_{curve[1]}" in measured.get(curve[0], ())]
    rows = max(1, -(-len(curves) // 3))
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 3).ravel()
    for axis in axes[len(curves) :]:
        axis.axis("off")
    for axis, (stage, name, label, scale) in zip(axes, curves, strict=False):
        epochs = [row["epoch"] for row in stages[stage]]
        if name in measured[stage]:
            axis.plot(epochs, [row.get(name, np.nan) for row in stages[stage]], label="training", color="0.5")
        of_validation = [row.get(f"val_{name}", np.nan) for row in stages[stage]]  # none before there is a quantiser
        axis.plot(epochs, of_validation, label="validation", color="tab:red")
        quantised = [row["epoch"] for row in stages[stage] if "perplexity" in row]
        if quantised and quantised[0] > epochs[0]:
            axis.axvline(quantised[0] - 0.5, color="0.7", linestyle=":", label="quantiser begins")
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if curves:
        axes[0].legend(frameon=False)
    finish(figure, path, footer)


def progress(path, images, outputs, title, titles, curve, epochs, footer):
    """Input, reconstruction and their difference after an epoch, and the SSIM of all epochs so far.

    One picture in one axis, since it is drawn after every epoch, some of which take a second.

    Args:
        images, outputs: Float in [0, 1], shape (n, size, size).
        title: Of the whole.
        titles: One line above each column.
        curve: (epoch, SSIM) of each epoch.
        epochs: How many there will be.
    """
    size = images.shape[1]
    colours = colormaps["RdBu_r"]((outputs - images) / 0.6 + 0.5)[..., :3]
    tiles = [np.repeat(images[..., None], 3, axis=3), np.repeat(outputs[..., None], 3, axis=3), colours]
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])
    figure = Figure(figsize=(1.5 * len(images) + 1.4, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1))
    top.imshow(picture, interpolation="nearest")
    middles = (np.arange(len(images)) + 0.5) * size
    top.set_xticks(middles, titles, fontsize=8)
    top.set_yticks(middles[:1] + size * np.arange(3), ["input", "reconstruction", "difference\n(red: too bright)"])
    top.tick_params(length=0, labeltop=True, labelbottom=False)
    top.set_title(title, fontsize=10)
    bottom.plot(*zip(*curve, strict=True), marker=".", color="tab:red")
    bottom.set(xlabel="epoch", ylabel="SSIM, validation", xlim=(0.5, epochs + 0.5))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    finish(figure, path, footer)


# Marks at the left, right, top and bottom of a slice of each plane, what they mean, and which slice stands at the top.
SIDES = {
    "axial": ("LRAP", "L, R: the person's left and right; A, P: anterior, posterior; the highest slice at the top"),
    "coronal": (
        "LRSI",
        "L, R: the person's left and right; S, I: superior, inferior; the most anterior at the top",
    ),
    "sagittal": (
        "PASI",
        "P, A: posterior, anterior; S, I: superior, inferior; the rightmost slice at the top",
    ),
    None: ("", "left and right as in the files; the slice of the highest number at the top"),
}


def preview(path, columns, plane, pixel_mm, footer):
    """A contact sheet of a data set: a column for each person, the last slice at the top, with marks and a scale.

    Args:
        columns: For each person a title, images, float in [0, 1], shape (3, size, size), and their slice numbers.
        plane: A key of `SIDES`, or None where it is not known, as of images: they are shown as they lie in their files.
        pixel_mm: Side of a pixel in mm; None where it is not known.
        footer: Line under the picture.
    """
    figure, axes = _image_axes(3, len(columns), size=1.7)
    size = columns[0][1].shape[1]
    length = round(50 / pixel_mm) if pixel_mm else size // 4
    marks, meaning = SIDES[plane]
    for column, (title, images, numbers) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=7)
        for axis, image, number in zip(column, images, numbers, strict=True):
            axis.imshow(image, **GREY)
            axis.set_xlabel(f"slice {number}", fontsize=6, labelpad=2)
            for mark, (x, y) in zip(marks, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05)), strict=False):
                axis.text(x, y, mark, color="yellow", fontsize=8, ha="center", va="center", transform=axis.transAxes)
    corner = axes[-1, 0]
    corner.plot([size * 0.06, size * 0.06 + length], [size * 0.95] * 2, color="yellow", linewidth=2)
    scale = "50 mm" if pixel_mm else f"{length} pixels"
    corner.text(size * 0.06, size * 0.91, scale, color="yellow", fontsize=7)
    finish(figure, path, f"{meaning}; the yellow line is {scale}\n{footer}")


def lesions(path, images, where, maps, titles, footer):
    """Slices with planted lesions, outlined, above each kind of map of them, by name; a column for each slice."""
    figure, axes = _image_axes(1 + len(maps), len(images))
    for row, (name, shown) in zip(axes, {"lesion planted": images, **maps}.items(), strict=True):
        row[0].set_ylabel(name, fontsize=7)
        for axis, image, lesion in zip(row, shown, where, strict=True):
            axis.imshow(image, **(GREY if shown is images else {"cmap": "magma", "vmin": 0, "vmax": shown.max()}))
            axis.contour(lesion, levels=[0.5], colors="tab:cyan", linewidths=0.6)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    finish(figure, path, footer)


def hidden(path, pictures, masks, footer):
    """Rows of slices by name, the first as they are, the others completed; the hidden squares outlined."""
    figure, axes = _image_axes(len(pictures), len(masks))
    for row, (name, shown) in zip(axes, pictures.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for axis, image, mask in zip(row, shown, masks, strict=True):
            axis.imshow(image, **GREY)
            axis.contour(mask, levels=[0.5], colors="tab:orange", linewidths=0.6)
    finish(figure, path, footer)


# -- Volumes ------------------------------------------------------------------------------------------------------


def views(slices, plane, voxel_mm, at=(0.5, 0.5, 0.5)):
    """A sagittal, a coronal and an axial slice of a head, at shares of its extents; pixels as large as a slice's own.

    Args:
        slices: Shape (s, S, S): slices of a plane as the run has them, lowest, most posterior or leftmost first.
        plane: Of the slices.
        voxel_mm: (across, along, between).

    Returns:
        Three images by plane, in which the front of a sagittal one is right, the left of the others left, top above.
    """
    voxels = to_volume(slices, plane)  # right, anterior, superior
    lit = [np.flatnonzero(voxels.max(axis=tuple({0, 1, 2} - {i})) > 25) for i in range(3)]
    images, sizes = {}, np.insert(np.array(voxel_mm[:2], float), PLANES[plane], voxel_mm[2])
    for i, name in enumerate(PLANES):
        ends = (0, voxels.shape[i] - 1) if len(lit[i]) == 0 else (lit[i][0], lit[i][-1])
        image = np.rot90(np.take(voxels, round(ends[0] + at[i] * (ends[1] - ends[0])), axis=i))
        across, along = (sizes[j] for j in range(3) if j != i)
        height, width = (round(n * mm / voxel_mm[0]) for n, mm in zip(image.shape, (along, across), strict=True))
        if image.shape != (height, width):
            image = resize(image.astype("float32"), (height, width), anti_aliasing=False)
        images[name] = np.clip(image, 0, 255).round().astype("uint8")
    return images


def heads(path, shown, titles, pixel_mm, footer):
    """Axial, coronal and sagittal views of volumes, a column each: `shown` holds the `views` of each."""
    names = ("axial", "coronal", "sagittal")
    heights = [max(images[name].shape[0] for images in shown) for name in names]
    figure = Figure(figsize=(1.9 * len(shown) + 0.6, 1.9 * sum(heights) / max(heights) + 0.8), layout="constrained")
    axes = figure.subplots(3, len(shown), squeeze=False, height_ratios=heights)
    for row, name in zip(axes, names, strict=True):
        for column, (axis, images) in enumerate(zip(row, shown, strict=True)):
            image = images[name]
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if name != "sagittal":
                for x, side in ((0.02, "L"), (0.94, "R")):
                    axis.text(x, 0.97, side, transform=axis.transAxes, color="white", fontsize=8, va="top")
            if column == 0:
                axis.set_ylabel(name)
                axis.plot([4, 4 + 50 / pixel_mm], [image.shape[0] - 6] * 2, color="white", linewidth=1.5)
                axis.text(4, image.shape[0] - 10, "50 mm", color="white", fontsize=7)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    finish(figure, path, footer)


TISSUE = 0.22  # brightness from which on a voxel hides what lies behind it
TURNED_MM = 1.3  # voxels of a head that turns, at least


def turning(path, slices, plane, voxel_mm, frames=40):
    """A GIF of a head that turns about its long axis, seen from the side and lit from above; arguments as for `views`.

    What is seen is the outermost tissue in each line of sight, as bright as it is and as steeply as it lies.
    """
    sizes = np.insert(np.array(voxel_mm[:2], float), PLANES[plane], voxel_mm[2])
    voxels = ndimage.zoom(to_volume(slices, plane) / np.float32(255), sizes / max(TURNED_MM, min(sizes)), order=1)
    reach = int(np.hypot(*voxels.shape[:2])) + 2  # that nothing leaves the picture as it turns
    voxels = np.pad(voxels, [((reach - n) // 2, reach - n - (reach - n) // 2) for n in voxels.shape[:2]] + [(4, 4)])
    voxels, light = ndimage.gaussian_filter(voxels, 0.7), np.array([-0.35, 0.5, 0.8])
    images = []
    for angle in np.linspace(0, 360, frames, endpoint=False):
        turned = ndimage.rotate(voxels, angle, reshape=False, order=1)
        tissue = turned > TISSUE
        depth = np.where(tissue.any(axis=1), tissue.argmax(axis=1), reach)  # (right, superior), seen from behind
        slope = np.gradient(ndimage.gaussian_filter(depth.astype("float32"), 1.0))
        steep = np.stack([slope[0], slope[1], np.ones_like(slope[0])]) / np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2)
        below = np.minimum(depth + 2, reach - 1)[:, None]  # the surface itself is half air
        grey = 0.35 + 0.8 * np.take_along_axis(turned, below, axis=1)[:, 0]
        image = np.where(depth < reach, grey * np.clip(np.tensordot(light / np.linalg.norm(light), steep, 1), 0, 1), 0)
        picture = PIL.Image.fromarray((np.clip(image, 0, 1).T[::-1] * 255).astype("uint8"))
        picture = picture.resize([2 * side for side in picture.size], PIL.Image.Resampling.BICUBIC)
        images.append(picture.point(lambda value: value // 8 * 8))
    how = {"save_all": True, "append_images": images[1:], "duration": 90, "loop": 0, "optimize": True}
    write_whole(path, lambda partial: images[0].save(partial, **how))
