"""MONAI's VQ-VAE as a contestant of `peers.py`, in an environment of its own (requirements-monai.txt).

"tutorial" is that of GenerativeModels' tutorials/generative/2d_vqvae (256 channels, 256 codes of 32, L1, Adam at 1e-4,
never decayed), but for batches of 16 in place of 64, of which two minutes would see a handful. "matching" has the
loss, batches, schedule, entries of 64 and bits per pixel of this project; its class has no levels and no restarts, its
residual blocks stand at the finer grid, too, and it has AdamW and a quantiser from the first step. Both compute in
bfloat16 where the processor has it, which the tutorial does not and which is faster.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import worker
from monai.losses import SSIMLoss
from monai.networks.nets import VQVAE

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16 = CPU_INFO.exists() and "avx512_bf16" in CPU_INFO.read_text()
NUM_EMBEDDINGS = 256


def autocast():
    return torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16)


class Contestant(worker.Contestant):
    """Trained on uint8 slices, shape (n, S, S), of train.npy in a folder, and measured on those of test.npy."""

    def __init__(self, kind, folder, seconds):
        self.matching = kind == "matching"
        super().__init__(1, float(seconds) if self.matching else None)
        torch.manual_seed(0)
        self.examples, self.test = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("train", "test"))
        sizes = {"channels": (256, 256), "num_res_channels": 256, "embedding_dim": 32}
        if self.matching:
            sizes = {"channels": (32, 64), "num_res_channels": (16, 32), "embedding_dim": 64, "decay": 0.99}
        stages = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
        self.model = VQVAE(2, 1, 1, num_res_layers=2, num_embeddings=NUM_EMBEDDINGS, **stages, **sizes)
        self.model.to(memory_format=torch.channels_last)
        self.ssim_loss, self.batch_size = SSIMLoss(spatial_dims=2), 4 if self.matching else 16
        if self.matching:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=1e-4)
        else:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.warm_up()
        if self.matching:
            self.start_codebook()

    @torch.no_grad()
    def start_codebook(self):
        """Starts the codebook from encoder outputs."""
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

    def step(self, share):
        self.model.train()
        self.optimizer.param_groups[0]["lr"] = self.optimizer.defaults["lr"] * share
        self.optimizer.zero_grad(set_to_none=True)
        start = max(0, self.steps) * self.batch_size % len(self.examples)
        if start < self.batch_size:  # an epoch begins
            self.order = np.random.default_rng([0, max(0, self.steps)]).permutation(len(self.examples))
        rows = np.sort(self.order[start : start + self.batch_size])
        x, _, outputs, commitment = self.forward(self.examples[rows])
        loss = (outputs - x).abs().mean() + commitment
        (loss + 0.3 * self.ssim_loss(outputs, x) if self.matching else loss).backward()
        if self.matching:
            for parameter in self.model.parameters():  # each by itself, as Keras's clipnorm
                torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, path):
        """Writes reconstructions and codes of the test slices; says what the training was."""
        self.model.eval()
        outputs, codes = [], []
        for start in range(0, len(self.test), 32):
            _, z_e, made, _ = self.forward(self.test[start : start + 32])
            outputs.append(made[:, 0].clip(0, 1).numpy())
            codes.append(self.model.quantizer.quantize(z_e).numpy())
        np.savez(
            path, outputs=np.concatenate(outputs), codes=np.concatenate(codes)[..., None], num_embeddings=NUM_EMBEDDINGS
        )
        parameters = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return self.row(parameters, self.batch_size, len(self.examples))


if __name__ == "__main__":
    worker.serve(lambda: Contestant(*sys.argv[1:]))
