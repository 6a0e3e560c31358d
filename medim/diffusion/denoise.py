"""What the diffusion asks of a network: logits per modality, at the wanted positions only.

Shapes: B samples, L tokens, N_text / N_image the number of wanted report / picture positions in the whole batch,
n_text / n_image the sizes of the two alphabets.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class ModalityLogits(NamedTuple):
    """Logits of the wanted positions, split by modality, so that no (B, L, V) tensor ever exists.

    A head over its own modality's ids only is what makes SUBS exact: [MASK] and the other modality have no logit.
    """

    text: Tensor  # (N_text, n_text) over report ids; rows are `positions & text`, row-major over (B, L)
    image: Tensor  # (N_image, n_image) over codes; rows are `positions & image`, row-major over (B, L)


class Denoise(Protocol):
    """A network that predicts x0 from xt; a plain function will do."""

    def __call__(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        """Logits of p(x0 | xt).

        Args:
            xt: (B, L) int64 shared ids, mask_id where noisy.
            t: (B,) float32 in [0, 1], 1 = all masked.
            positions: (B, L) bool, where logits are wanted.
        """
        ...
