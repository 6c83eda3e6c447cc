"""The Vision Transformer for images of several tiles (arXiv 2010.11929), with torchtune's interface."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from .block import Block
from .embeddings import ClassEmbedding, PatchEmbedding, sides
from .init import normal, reset, zeros
from .norm import build_norm
from .packing import Packing, to_device
from .rope import RotaryPositions


class VisionTransformer(nn.Module):
    """Images of one or more tiles to tokens; the tokens of an image attend only to its own tiles.

    patch_size, tile_size: pixels along a side; a tile becomes (tile_size // patch_size)² patches.
        tile_size may also be (height, width).
    layer: a Block, deep-copied num_layers times; called as layer(x, packing).
    token_pos_embedding: a TokenPositionalEmbedding, or a TiledTokenPositionalEmbedding if images
        have several tiles; called as embedding(x, packing), like the next two. None: no table.
    pre_tile_pos_embed, post_tile_pos_embed: TilePositionalEmbeddings; the first is applied before the
        class token is added, the second after the last norm.
    cls_projection: called with (tiles, n, D), the class token first; `forward` returns its result
        (tiles, out) in place of the tokens.
    out_indices: the layers whose inputs are returned as hidden states, in the order of the layers.
    append_cls_token: the class token is the last token of its tile, not the first.

    Beyond torchtune:
    class_token: whether there is one. class_token_std: of its initial values, by default D^-0.5.
    patch_bias: whether the patch projection has a bias. pre_norm: a norm before the first layer.
    dropout: of the embedded tokens. drop_path: the stochastic depth of the last layer; it grows
        linearly from 0 at the first layer.
    registers: how many learned tokens without a position are added to every tile; they stand between a
        class token that comes first and the patches (arXiv 2309.16588).
    mask_token: whether there is a learned token that replaces masked patches, see `encode`.
    post_norm: whether there is a norm behind the last layer.
    rope: how queries and keys turn with the place of their patch. norm: the kind of the norms outside of the
        layers, `layer` or `rms`.
    patch_embed, grid: what replaces the patch projection, (T, C, S, S) -> (T, patches, D), and the
        rows and columns of patches that it makes of a tile.

    Raises ValueError for sizes not above 0, for a tile that the patches do not fill, for out_indices
    that do not fit num_layers, and for a cls_projection without class token.
    """

    def __init__(
        self,
        patch_size: int,
        tile_size: int | tuple[int, int],
        num_layers: int,
        embed_dim: int,
        layer: Block,
        token_pos_embedding: nn.Module | None,
        pre_tile_pos_embed: nn.Module | None = None,
        post_tile_pos_embed: nn.Module | None = None,
        cls_projection: nn.Module | None = None,
        out_indices: list[int] | None = None,
        in_channels: int = 3,
        append_cls_token: bool = False,
        *,
        class_token: bool = True,
        patch_bias: bool = False,
        pre_norm: bool = True,
        norm_eps: float = 1e-5,
        class_token_std: float | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        registers: int = 0,
        mask_token: bool = False,
        post_norm: bool = True,
        rope: RotaryPositions | None = None,
        norm: str = "layer",
        patch_embed: nn.Module | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if min(sides(tile_size)) <= 0:
            raise ValueError("tile_size must be > 0")
        if patch_size <= 0:
            raise ValueError("patch_size must be > 0")
        if in_channels <= 0:
            raise ValueError("in_channels must be > 0")
        out_indices = out_indices or []
        if len(out_indices) > num_layers:
            raise ValueError(f"len(out_indices) must be <= num_layers. Got {out_indices=} and {num_layers=}")
        if any(not 0 <= index < num_layers for index in out_indices):
            raise ValueError(f"out_indices must be in [0, {num_layers}), got {out_indices}")
        if cls_projection is not None and not class_token:
            raise ValueError("cls_projection needs a class token")

        self.tile_size = tile_size
        self.in_channels = in_channels
        self.grid = grid or _grid(sides(tile_size), patch_size)
        self.out_indices = out_indices
        self.append_cls_token = append_cls_token

        self.patch_embed = patch_embed or PatchEmbedding(patch_size, embed_dim, in_channels, bias=patch_bias)
        self.cls_token_embedding = (
            ClassEmbedding(embed_dim, append_cls_token, class_token_std) if class_token else None
        )
        self.register_tokens = nn.Parameter(torch.empty(registers, embed_dim)) if registers else None
        self.mask_token = nn.Parameter(torch.empty(embed_dim)) if mask_token else None
        self.init_rules = {"register_tokens": normal(0.02)} if registers else {}
        self.init_rules |= {"mask_token": zeros} if mask_token else {}
        self.pre_tile_pos_embed = pre_tile_pos_embed
        self.token_pos_embedding = token_pos_embedding
        self.post_tile_pos_embed = post_tile_pos_embed
        self.rope = rope
        self.dropout = nn.Dropout(dropout)
        self.ln_pre = build_norm(norm, embed_dim, norm_eps) if pre_norm else nn.Identity()
        blocks = [deepcopy(layer) for _ in range(num_layers)]
        self.layers = nn.ModuleList(blocks)
        for index, block in enumerate(blocks if drop_path else ()):
            block.set_drop_path(drop_path * index / max(num_layers - 1, 1))
        self.ln_post = build_norm(norm, embed_dim, norm_eps) if post_norm else nn.Identity()
        self.cls_projection = cls_projection
        reset(self)

    @property
    def registers(self) -> int:
        """The number of register tokens in every tile."""
        return 0 if self.register_tokens is None else len(self.register_tokens)

    @property
    def prefix(self) -> int:
        """The number of tokens before a tile's patches: a class token that comes first, and registers."""
        return int(self.cls_token_embedding is not None and not self.append_cls_token) + self.registers

    @property
    def tokens_per_tile(self) -> int:
        """The number of tokens of a tile: patches, class token and registers."""
        return prod(self.grid) + (self.cls_token_embedding is not None) + self.registers

    def packing(self, grid: Tensor, device: torch.device) -> Packing:
        """The Packing of images with `grid` (B, 2) rows and columns of tiles.

        ValueError if an image has more rows or columns than the position tables.
        """
        tables = (self.pre_tile_pos_embed, self.token_pos_embedding, self.post_tile_pos_embed, self.rope)
        limits = [getattr(table, "max_num_tiles", None) for table in tables]
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is not None and grid.numel() and grid.max() > limit:
            raise ValueError(
                f"an image has {grid.max()} tiles along a side, but the positions end at {limit}"
            )
        packing = Packing.of(grid, self.tokens_per_tile, device, limit)
        if self.rope is None:
            return packing
        after = self.tokens_per_tile - self.prefix - prod(self.grid)
        return replace(packing, rotation=self.rope.rotation(packing, self.grid, self.prefix, after))

    def check(self, tiles: Tensor) -> None:
        """ValueError unless the tiles are (T, C, S, S) with this model's C and S."""
        if tiles.ndim != 4:
            raise ValueError(f"tiles must be (T, C, height, width), got {tuple(tiles.shape)}")
        if tiles.shape[1] != self.in_channels:
            raise ValueError(f"tiles have {tiles.shape[1]} channels, but must have {self.in_channels}")
        if tuple(tiles.shape[-2:]) != sides(self.tile_size):
            wanted = "x".join(map(str, sides(self.tile_size)))
            raise ValueError(f"tiles are {tiles.shape[-2]}x{tiles.shape[-1]}, but must be {wanted}")

    def encode(
        self,
        tiles: Tensor,
        packing: Packing,
        mask: Tensor | None = None,
        swap: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tiles (T, C, S, S) -> tokens (T, n, D) and the hidden states, all in packed order.

        mask: bool (T, patches) in packed order, the patches that the mask token replaces.
        swap: two int64 (K,), patches numbered through all tiles in packed order: those of the second
        replace those of the first, before the mask is applied.
        ValueError for tiles or a mask of another shape, and for a mask without mask_token.
        """
        x = self.embed(tiles, packing, mask, swap)
        hidden_states = []
        for index, block in enumerate(self.layers):
            if index in self.out_indices:
                hidden_states.append(x)
            x = block(x, packing)
        return self.finish(x, packing), hidden_states

    def embed(
        self,
        tiles: Tensor,
        packing: Packing,
        mask: Tensor | None = None,
        swap: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The input (T, n, D) of the first layer; arguments as in `encode`."""
        self.check(tiles)
        x = self.patch_embed(tiles)
        if swap is not None:
            to, source = swap
            flat = x.flatten(0, 1)
            x = flat.index_copy(0, to, flat.index_select(0, source)).view_as(x)
        if mask is not None:
            x = self._masked(x, mask)
        if self.pre_tile_pos_embed is not None:
            x = self.pre_tile_pos_embed(x, packing)
        if self.cls_token_embedding is not None:
            x = self.cls_token_embedding(x)
        if self.token_pos_embedding is not None:
            x = self.token_pos_embedding(x, packing)
        if self.register_tokens is not None:
            tokens = self.register_tokens.to(x.dtype).expand(len(x), -1, -1)
            before = self.prefix - self.registers
            x = torch.cat([x[:, :before], tokens, x[:, before:]], 1)
        return self.ln_pre(self.dropout(x))

    def finish(self, x: Tensor, packing: Packing) -> Tensor:
        """The last norm and the positions behind it, for the output x of the last layer."""
        x = self.ln_post(x)
        return x if self.post_tile_pos_embed is None else self.post_tile_pos_embed(x, packing)

    def _masked(self, patches: Tensor, mask: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError("this model has no mask token, so that it takes no mask")
        if mask.dtype != torch.bool or mask.shape != patches.shape[:2]:
            raise ValueError(
                f"mask must be bool {tuple(patches.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        return torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)

    def forward(self, images: Tensor, aspect_ratio: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Padded images to padded tokens; the values of padding tiles are not read.

        images: (bsz, n_imgs, n_tiles, C, S, S), the real tiles first. aspect_ratio: integer
        (bsz, n_imgs, 2), rows and columns of tiles, (0, 0) for a padding image. Returns x (bsz,
        n_imgs, n_tiles, n, D), or with cls_projection (bsz, n_imgs, n_tiles, 1, out), and the hidden
        states, (bsz, n_imgs, n_tiles, n, D) each; all are zero for padding tiles.

        Raises ValueError if aspect_ratio is missing with more than one tile or does not fit the
        images.
        """
        if images.ndim != 6:
            raise ValueError(f"images must be (bsz, n_imgs, n_tiles, C, S, S), got {tuple(images.shape)}")
        bsz, n_imgs, n_tiles = images.shape[:3]
        if aspect_ratio is None:
            if n_tiles > 1:
                raise ValueError(f"aspect_ratio was not provided, but found n_tiles>1 for {images.shape=}")
            aspect_ratio = torch.ones(bsz, n_imgs, 2, dtype=torch.int64)
        if tuple(aspect_ratio.shape) != (bsz, n_imgs, 2):
            raise ValueError(f"aspect_ratio must be {(bsz, n_imgs, 2)}, got {tuple(aspect_ratio.shape)}")
        grid = aspect_ratio.flatten(0, 1).cpu()
        packing = self.packing(grid[grid.prod(1) > 0], images.device)
        if grid.prod(1).max() > n_tiles:
            raise ValueError(
                f"aspect_ratio asks for {grid.prod(1).max()} tiles, more than the {n_tiles} tiles of an image"
            )

        real = (torch.arange(n_tiles) < grid.prod(1)[:, None]).flatten().nonzero()[:, 0]
        real = to_device(real, images.device)
        x, hidden_states = self.encode(packing.pack(images.flatten(0, 2).index_select(0, real)), packing)
        if self.cls_projection is not None:
            class_first = torch.cat([x[:, -1:], x[:, :-1]], 1) if self.append_cls_token else x
            x = self.cls_projection(class_first)[:, None]

        def padded(tokens: Tensor) -> Tensor:
            rows = tokens.new_zeros(bsz * n_imgs * n_tiles, *tokens.shape[1:])
            rows = rows.index_copy(0, real, packing.unpack(tokens))
            return rows.unflatten(0, (bsz, n_imgs, n_tiles))

        return padded(x), [padded(hidden) for hidden in hidden_states]


def _grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches; ValueError if they do not fill the tile."""
    for side in size:
        if side % patch_size:
            below = side // patch_size * patch_size
            nearest = " or ".join(str(valid) for valid in (below, below + patch_size) if valid)
            raise ValueError(
                f"tile_size {side} is not a multiple of patch_size {patch_size}: the nearest is {nearest}"
            )
    return size[0] // patch_size, size[1] // patch_size
