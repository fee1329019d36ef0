"""Draws `digits_inpainted.png`: the lower halves of test digits, filled in by an exact circuit.

python docs/pictures/digits_inpainted.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import pofx

SEEN, COLUMNS, DRAWS = 32, 10, 3  # of 64 pixels, images, draws of each


def main() -> None:
    """Learn, fill in, draw."""
    p = pofx.fit("digits", "hclt", units=16, learning="adam")
    x = torch.as_tensor(np.asarray(pofx.load("digits").test)).reshape(-1, 64).double()[:COLUMNS]
    holes = x.clone()
    holes[:, SEEN:] = torch.nan
    generator = torch.Generator().manual_seed(0)
    draws = [("draw", p.model.complete(holes, generator=generator)) for _ in range(DRAWS)]
    rows = [("test image", x), ("what is seen", holes), ("mean", p.model.impute(holes)), *draws]
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=(7, 4.4))
    greys = plt.cm.gray_r.with_extremes(bad="#c8d8e8")
    for (name, images), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for image, place in zip(images, line, strict=True):
            place.imshow(np.ma.masked_invalid(image.reshape(8, 8)), cmap=greys, vmin=0, vmax=16)
            place.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
