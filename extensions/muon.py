"""What a VQ-VAE learns by."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("brain_vqvae")
class KernelMuon(keras.optimizers.Muon):
    """Muon (Liu et al. 2025, arXiv:2502.16982) for the kernels of convolutions, AdamW for all else.

    A kernel of four axes is taken as a matrix whose columns are its last axis; Keras's own Muon takes variables of two
    axes alone. Its momentum is Nesterov's. Entries of a codebook learn `PACE` times as fast as all else that AdamW
    moves: however far an entry is from its vectors, Adam moves it by the learning rate at most, and the encoder leaves
    it behind.
    """

    PACE = 10.0

    def _should_use_adamw(self, variable):
        return len(variable.shape) != 4

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * (self.PACE if "entries" in variable.name else 1.0))

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign_add(m, gradient + m * (self.momentum - 1))
        matrix = ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
        self.assign_sub(variable, ops.reshape(update, variable.shape))
