"""Set-to-grid decoder: rebuilds the teacher's patch grid from latent tokens and their RoIs. Used in training only."""

from torch import Tensor, nn

from sparse_vlm.encoder.focusing import RoIEncoding
from sparse_vlm.encoder.rois import lay_out_grid

HEAD_WIDTH = 64


class ReadingBlock(nn.Module):
    """Pre-norm block in which queries attend to latent tokens, followed by an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """float[B, m, width], float[B, n, width] -> float[B, m, width]"""
        queries = queries + self.attention(self.norm1(queries), tokens, tokens, need_weights=False)[0]
        return queries + self.mlp(self.norm2(queries))


class GridDecoder(nn.Module):
    """Latent tokens and their RoIs -> one token per cell of a grid.

    A query per cell is the encoding of the cell's box. It attends to the latent tokens, to which the encodings of their
    RoIs are added, so no latent token is tied to a cell. Source: ours, after the training-time decoder of RADIO1D
    (arXiv 2607.03624).

    No gradient reaches the RoIs, which would otherwise move to places that are easy to rebuild.

    Args:
        channels: channels of the latent tokens and of the grid's tokens.
        width: width of the decoder, a multiple of 64 (the channels of its heads).
        depth: number of blocks.
    """

    def __init__(self, channels: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.place = RoIEncoding(width, eps=1e-5)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ReadingBlock(width) for _ in range(depth))
        self.write = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, tokens: Tensor, rois: Tensor, grid: tuple[int, int]) -> Tensor:
        """Rebuild a grid.

        Args:
            tokens: latent tokens float[B, n, channels].
            rois: their RoIs float32[B, n, 4] in image coordinates.
            grid: rows and columns.

        Returns:
            float[B, rows · columns, channels] in row-major order.
        """
        cells = lay_out_grid(*grid).to(rois.device)
        queries = self.place(cells).expand(len(tokens), -1, -1)
        memory = self.norm(self.read(tokens) + self.place(rois))
        for block in self.blocks:
            queries = block(queries, memory)
        return self.write(queries)
