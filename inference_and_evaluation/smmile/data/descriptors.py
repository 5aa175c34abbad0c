"""Descriptors of images, to find similar ones without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smmile.data.images import StoredImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THUMBNAIL_SIDE = 16
HISTOGRAM_LEVELS = 4
_PIXELS_AT_ONCE = 1 << 20


class ImageDistances:
    """Distances between images, with the descriptor of each image computed once."""

    def __init__(self) -> None:
        self._descriptors: dict[str, NDArray[np.float64]] = {}

    def squared(self, one: StoredImage, other: StoredImage) -> float:
        """The squared Euclidean distance of two descriptors. Raises UnreadableImageError."""
        difference = self._descriptor(one) - self._descriptor(other)
        return float((difference**2).sum())

    def _descriptor(self, image: StoredImage) -> NDArray[np.float64]:
        if image.sha256 not in self._descriptors:
            self._descriptors[image.sha256] = image_descriptor(image)
        return self._descriptors[image.sha256]


def image_descriptor(image: StoredImage) -> NDArray[np.float64]:
    """A descriptor of shape (832,); the Euclidean distance of two descriptors compares two images.

    The first 768 values are a 16 x 16 RGB thumbnail in 0..1 divided by sqrt(768), for layout. The other 64
    are sqrt(h / 2) of a 4 x 4 x 4 RGB histogram h, for colour: their Euclidean distance is the Hellinger
    distance. Each part contributes a distance of at most 1.
    """
    import numpy as np
    from PIL import Image

    pil_image = image.decode()
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = np.asarray(pil_image.resize(side, Image.Resampling.BOX), dtype=np.float64) / 255
    width, height = pil_image.size
    counts = np.zeros(HISTOGRAM_LEVELS**3)
    rows = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        strip = pil_image.crop((0, top, width, min(top + rows, height)))
        levels = np.asarray(strip).reshape(-1, 3) // (256 // HISTOGRAM_LEVELS)
        colours = levels @ np.array([HISTOGRAM_LEVELS**2, HISTOGRAM_LEVELS, 1])
        counts += np.bincount(colours, minlength=len(counts))
    histogram = counts / (width * height)
    return np.concatenate([thumbnail.ravel() / np.sqrt(thumbnail.size), np.sqrt(histogram / 2)])
