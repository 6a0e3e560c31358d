"""First embedding rows of the image codes: drawn, or a projection of the VQGAN's codebook.

A codebook has a geometry: near vectors decode to near patches. Rows that are drawn independently forget it, and a small
network sees each of hundreds of codes too seldom to find it again. `codebook` keeps it, as networks do that embed the
latents themselves (a linear map of the code vectors, fixed here and then trained row by row).

Letters: n codes, d channels of a code vector, D width of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODE_ROWS = ("codebook", "drawn")
KEPT = 0.9  # of a row's standard deviation is the codebook's; the rest is drawn, so that no two rows are equal


@torch.no_grad()
def set_code_rows(rows: Tensor, codebook: Tensor, generator: torch.Generator) -> None:
    """Fill rows (n, D) in place with a random projection of the codebook (n, d), at the rows' own scale.

    Raises:
        ValueError: another number of codes.
    """
    if len(rows) != len(codebook):
        raise ValueError(f"the codebook has {len(codebook)} vectors, the embedding {len(rows)} rows for codes")
    scale = rows.std()
    vectors = codebook.detach().float().cpu()
    centred = vectors - vectors.mean(0)
    projected = centred @ torch.randn(centred.shape[1], rows.shape[1], generator=generator)
    projected = (projected / projected.std().clamp(min=1e-12)).to(rows.device)
    rows.copy_(KEPT * scale * projected + (1 - KEPT**2) ** 0.5 * rows)
