"""A latent diffusion model of MONAI for `generators.py`, in an environment of its own (requirements-monai.txt).

    python benchmarks/peer_diffusion.py FOLDER SECONDS NUMBER

After MONAI's 2d_ldm_tutorial.ipynb: `AutoencoderKL` (L1, KL at 1e-6, a patch discriminator at 0.01 after the first
half), then `DiffusionModelUNet` on its latents, scaled to variance 1 (1,000 steps, linear in beta from 0.0015 to
0.0195). Otherwise here: 0.25 and 4.1 million parameters, to fit two cores; this project's 0.3 (1 - SSIM) in place of a
perceptual loss, whose network would be downloaded; AdamW at 1e-3 with a warm-up and a cosine, batches of 8; averaged
weights of the diffusion model, and 50 steps of DDIM; the slice position told by cross-attention, as cosines; latents
computed once, so slices are not changed. A third of the time goes to the autoencoder.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.inferers import LatentDiffusionInferer
from monai.losses import PatchAdversarialLoss, SSIMLoss
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from peer_monai import autocast

SHARE, BATCH, AVERAGE = 1 / 3, 8, 0.999  # of the time for the autoencoder; slices of a step; of the averaged weights
NOISE = {"num_train_timesteps": 1000, "schedule": "linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
NOISE |= {"clip_sample": False}
DDIM_STEPS, WAVES = 50, 16


def batches(number, seconds):
    """Yields rows of a batch, and the share of the time that has passed, until it has; each epoch in another order."""
    start, rng, order = time.perf_counter(), np.random.default_rng(0), []
    while (done := (time.perf_counter() - start) / seconds) < 1:
        if len(order) < BATCH:
            order = list(rng.permutation(number))
        yield [order.pop() for _ in range(BATCH)], done


def as_images(slices):
    return torch.from_numpy(slices[:, None].astype("float32") / 255)


def waves(positions):
    """Slice positions (n,) as what cross-attention is told, (n, 1, 16)."""
    return torch.cos(math.pi * torch.as_tensor(positions, dtype=torch.float32)[:, None] * torch.arange(WAVES))[:, None]


def rate(optimizer, highest, done):
    """A warm-up over a twentieth of the time and a cosine to 0."""
    share = min(1.0, 20 * done) * 0.5 * (1 + math.cos(math.pi * done))
    optimizer.param_groups[0]["lr"] = highest * share


def train_autoencoder(slices, seconds):
    model = AutoencoderKL(
        2, channels=(16, 32, 64), num_res_blocks=1, latent_channels=3, norm_num_groups=16,
        attention_levels=(False,) * 3, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    discriminator = PatchDiscriminator(2, channels=32, in_channels=1, num_layers_d=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    of_discriminator = torch.optim.AdamW(discriminator.parameters(), lr=5e-4)
    ssim, adversarial, seen = SSIMLoss(spatial_dims=2), PatchAdversarialLoss(criterion="least_squares"), 0
    for rows, done in batches(len(slices), seconds):
        rate(optimizer, 1e-3, done)
        x = as_images(slices[rows])
        with autocast():
            made, mean, sd = model(x)
        made, mean, sd = made.float(), mean.float(), sd.float()
        kl = 0.5 * (mean**2 + sd**2 - torch.log(sd**2) - 1).sum(dim=(1, 2, 3)).mean()
        loss = (made - x).abs().mean() + 0.3 * ssim(made, x) + 1e-6 * kl
        if done > 0.5:
            with autocast():
                judged = discriminator(made)[-1]
            loss = loss + 0.01 * adversarial(judged.float(), target_is_real=True, for_discriminator=False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if done > 0.5:
            of_discriminator.zero_grad(set_to_none=True)
            with autocast():
                fake, real = discriminator(made.detach())[-1], discriminator(x)[-1]
            told = [adversarial(y.float(), target_is_real=t, for_discriminator=True) for y, t in ((fake, 0), (real, 1))]
            (0.5 * sum(told)).backward()
            of_discriminator.step()
        seen += len(rows)
    return model.eval(), seen


def train_diffusion(latents, positions, seconds):
    model = DiffusionModelUNet(
        2, 3, 3, num_res_blocks=1, channels=(32, 64, 128), attention_levels=(False, True, True),
        num_head_channels=(0, 32, 32), norm_num_groups=16, with_conditioning=True, cross_attention_dim=WAVES,
    )  # fmt: skip
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)
    )
    optimizer, noises, seen = torch.optim.AdamW(model.parameters(), lr=1e-3), DDPMScheduler(**NOISE), 0
    for rows, done in batches(len(latents), seconds):
        rate(optimizer, 1e-3, done)
        clean, told = latents[rows], waves(positions[rows])
        noise, steps = torch.randn_like(clean), torch.randint(0, NOISE["num_train_timesteps"], (len(rows),))
        with autocast():
            found = model(noises.add_noise(clean, noise, steps), timesteps=steps, context=told)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(found.float(), noise).backward()
        optimizer.step()
        averaged.update_parameters(model)
        seen += len(rows)
    return averaged.module.eval(), seen


@torch.no_grad()
def in_batches(function, *inputs):
    parts = (function(*(x[i : i + 32] for x in inputs)) for i in range(0, len(inputs[0]), 32))
    return torch.cat(list(parts))


def parameters(*models):
    return sum(p.numel() for model in models for p in model.parameters())


def main(folder, seconds, number):
    torch.manual_seed(0)
    folder, seconds = Path(folder), float(seconds)
    slices, test, positions = (np.load(folder / f"{name}.npy") for name in ("train", "test", "positions"))
    autoencoder, of_autoencoder = train_autoencoder(slices, SHARE * seconds)
    latents = in_batches(lambda x: autoencoder.encode(as_images(x))[0], slices)
    scale = 1 / latents.std()
    unet, of_diffusion = train_diffusion(latents * scale, positions, (1 - SHARE) * seconds)

    ddim = DDIMScheduler(**NOISE)
    ddim.set_timesteps(DDIM_STEPS)
    inferer = LatentDiffusionInferer(ddim, scale_factor=scale)
    at = np.random.default_rng(0).choice(positions, int(number))

    def draw(told, noise):
        return inferer.sample(noise, autoencoder, unet, ddim, conditioning=told, verbose=False)

    start = time.perf_counter()
    drawn = in_batches(draw, waves(at), torch.randn(len(at), *latents.shape[1:]))
    each = (time.perf_counter() - start) / len(at)
    again = in_batches(lambda x: autoencoder.reconstruct(as_images(x)), test)
    made = {name: x[:, 0].clip(0, 1).numpy() for name, x in (("samples", drawn), ("reconstructions", again))}
    np.savez(folder / "diffusion.npz", positions=at, **made)
    told = {"parameters": parameters(autoencoder, unet), "seconds_a_sample": each}
    told |= {"slices_of_the_autoencoder": of_autoencoder, "slices_of_the_diffusion_model": of_diffusion}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
