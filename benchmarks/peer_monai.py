"""MONAI's VQ-VAE and transformer as contestants of `peers.py`, in an environment of their own (requirements-monai.txt).

Of the VQ-VAE, "tutorial" is that of GenerativeModels' tutorials/generative/2d_vqvae (256 channels, 256 codes of 32, L1,
Adam at 1e-4, never decayed), but for batches of 16 in place of 64, of which two minutes would see a handful; "matching"
has the sizes, batches, loss, optimiser, schedule and start of this project as far as MONAI's class lets it (its
residual blocks stand at the finer grid, too, and have 3 x 3 convolutions alone; it has no restarts). The transformer is
that of 2d_vqvae_transformer there at commit 0477a225 (12 layers of 64, 8 heads, Adam at 1e-3, batches of 8), with a
token of its own for the beginning and torch's fused attention, the same function, faster. All compute in bfloat16 where
the processor has it, which the tutorials do not and which is faster.
"""

import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import worker
from monai.losses import SSIMLoss
from monai.networks.nets import VQVAE, DecoderOnlyTransformer

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16 = CPU_INFO.exists() and "avx512_bf16" in CPU_INFO.read_text()
NUM_EMBEDDINGS = 256


def autocast():
    return torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16)


class Contestant(worker.Contestant):
    """Trains `model`, clipping gradients where the learning rate follows a schedule; subclasses have `loss(batch)`."""

    def __init__(self, model, optimizer, examples, batch_size, seconds=None):
        super().__init__(1, seconds)
        self.model, self.optimizer, self.examples, self.batch_size = model, optimizer, examples, batch_size
        self.warm_up()

    def step(self, share):
        self.model.train()
        self.optimizer.param_groups[0]["lr"] = self.optimizer.defaults["lr"] * share
        self.optimizer.zero_grad(set_to_none=True)
        start = max(0, self.steps) * self.batch_size % len(self.examples)
        if start < self.batch_size:  # an epoch begins
            self.order = np.random.default_rng([0, max(0, self.steps)]).permutation(len(self.examples))
        self.loss(self.examples[np.sort(self.order[start : start + self.batch_size])]).backward()
        if self.seconds:
            for parameter in self.model.parameters():  # each by itself, as Keras's clipnorm
                torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, path):
        """Writes what `measure` finds of the test slices; says what the training was."""
        self.model.eval()
        np.savez(path, **self.measure())
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return self.row(parameters, self.batch_size, len(self.examples))


class MonaiVQVAE(Contestant):
    """Trained on uint8 slices, shape (n, S, S)."""

    def __init__(self, folder, matching, seconds):
        torch.manual_seed(0)
        examples, self.test = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in ("train", "test"))
        self.ssim_loss, self.matching = SSIMLoss(spatial_dims=2), matching
        sizes = {"channels": (256, 256), "num_res_channels": 256, "embedding_dim": 32}
        optimizer = partial(torch.optim.Adam, lr=1e-4)
        if matching:
            sizes = {"channels": (32, 64), "num_res_channels": (16, 32), "embedding_dim": 16, "decay": 0.99}
            optimizer = partial(torch.optim.AdamW, lr=3e-3, weight_decay=1e-4)
        stages = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
        model = VQVAE(2, 1, 1, num_res_layers=2, num_embeddings=NUM_EMBEDDINGS, **stages, **sizes)
        model.to(memory_format=torch.channels_last)
        super().__init__(model, optimizer(model.parameters()), examples, *((4, seconds) if matching else (16,)))
        if matching:
            self.start_codebook()

    @torch.no_grad()
    def start_codebook(self):
        """Starts the codebook from encoder outputs, as this project does."""
        z_e = self.forward(self.examples[np.random.default_rng(0).permutation(len(self.examples))[:128]])[1]
        vectors = z_e.permute(0, 2, 3, 1).reshape(-1, z_e.shape[1])
        entries = vectors[torch.randperm(len(vectors))[:NUM_EMBEDDINGS]]
        quantizer = self.model.quantizer.quantizer
        for kept in (quantizer.embedding.weight, quantizer.ema_w):
            kept.copy_(entries)
        quantizer.ema_cluster_size.fill_(1.0)

    def forward(self, images):
        x = torch.from_numpy(images[:, None].astype("float32") / 255).contiguous(memory_format=torch.channels_last)
        with autocast():
            z_e = self.model.encode(x)
        z_q, commitment = self.model.quantize(z_e.float())
        with autocast():
            outputs = self.model.decode(z_q)
        return x, z_e.float(), outputs.float(), commitment

    def loss(self, images):
        x, _, outputs, commitment = self.forward(images)
        loss = (outputs - x).abs().mean() + commitment
        return loss + 0.3 * self.ssim_loss(outputs, x) if self.matching else loss

    def measure(self):
        outputs, codes = [], []
        for start in range(0, len(self.test), 32):
            _, z_e, made, _ = self.forward(self.test[start : start + 32])
            outputs.append(made[:, 0].clip(0, 1).numpy())
            codes.append(self.model.quantizer.quantize(z_e).numpy())
        return {"outputs": np.concatenate(outputs), "codes": np.concatenate(codes), "num_embeddings": NUM_EMBEDDINGS}


class MonaiTransformer(Contestant):
    """Trained on grids of codes, shape (n, g, g), in raster order behind a token that begins them."""

    def __init__(self, folder):
        torch.manual_seed(0)
        codes = np.load(folder / "codes.npz")
        self.num_embeddings = int(codes["num_embeddings"])
        examples, self.test = (codes[name].reshape(len(codes[name]), -1) for name in ("train", "test"))
        self.length = examples.shape[1]
        model = DecoderOnlyTransformer(self.num_embeddings + 1, self.length, 64, 12, 8, use_flash_attention=True)
        super().__init__(model, torch.optim.Adam(model.parameters(), lr=1e-3), examples, batch_size=8)

    def cross_entropy(self, codes, reduction):
        codes = torch.from_numpy(codes.astype("int64"))
        told = torch.nn.functional.pad(codes[:, :-1], (1, 0), value=self.num_embeddings)
        with autocast():
            logits = self.model(told)
        return torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), codes, reduction=reduction)

    def loss(self, codes):
        return self.cross_entropy(codes, "mean")

    def measure(self):
        batches = [self.test[start : start + 8] for start in range(0, len(self.test), 8)]
        bits = [self.cross_entropy(batch, "none").sum(dim=1).numpy() / math.log(2) for batch in batches]
        return {"bits": np.concatenate(bits)}

    @torch.no_grad()
    def time_samples(self, batch):
        """Seconds that MONAI's sampler takes for a batch.

        It runs the whole network over all codes so far for every code (`VQVAETransformerInferer.sample`). That pass and
        the draw are timed at 33 lengths, and the sum over all lengths is the trapezoid's.
        """
        self.model.eval()
        lengths, seconds = np.linspace(1, self.length, 33).astype(int), []
        for length in lengths:
            told, times = torch.full((batch, length), self.num_embeddings), []
            for _ in range(2):
                start = time.perf_counter()
                with autocast():
                    logits = self.model(told)[:, -1]
                torch.multinomial(torch.softmax(logits.float(), -1), 1)
                times.append(time.perf_counter() - start)
            seconds.append(min(times))
        return {"seconds": float(np.trapezoid(seconds, lengths))}


def main(name, folder, seconds):
    if name == "transformer":
        worker.serve(lambda: MonaiTransformer(Path(folder)))
    else:
        worker.serve(lambda: MonaiVQVAE(Path(folder), name == "matching", float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
