"""Frames with motion in them, for tests of alignment."""

import numpy as np
import torch

from vsdiqp.clip import ClipFormat, Planes
from vsdiqp.kernels import layouts


def moving_frame(form: ClipFormat, number: int) -> Planes:
    """Two textures that move differently, by fractions of a sample too, and noise; a frame of its own for a number."""
    random = np.random.default_rng(11)
    coarse = [torch.from_numpy(random.random((1, 1, 40, 40), np.float32)) for _ in range(2)]
    noise = np.random.default_rng(number)
    left = torch.arange(form.width)[None, :] < form.width * 0.6
    planes = []
    for index in range(1 if form.family == "GRAY" else 3):
        ys, xs = torch.meshgrid(torch.arange(form.height), torch.arange(form.width), indexing="ij")
        seen = []
        for picture, (dx, dy) in zip(coarse, ((2.25, -1.5), (-3.75, 0.5)), strict=True):
            x, y = (xs + dx * number + 40) / 100 - 0.6 + 0.1 * index, (ys + dy * number + 40) / 100 - 0.6
            grid = torch.stack((x, y), -1)[None].float()
            seen.append(torch.nn.functional.grid_sample(picture, grid, "bicubic", "reflection", align_corners=False))
        picture = torch.where(left, *seen)[0, 0].numpy() + noise.normal(0, 0.01, (form.height, form.width))
        if index:
            picture = picture[:: 1 << form.subsampling_h, :: 1 << form.subsampling_w]
        if form.sample_type == "integer":
            peak = 2**form.bits - 1
            picture = np.clip(np.round(picture * 0.9 * peak), 0, peak)
        planes.append(np.ascontiguousarray(picture.astype(layouts.sample_dtype(form))))
    return tuple(planes)
