"""Self-contained pages: one HTML file with its data, script, style and images, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import msgspec

from smmile.data.images import StoredImage, decode_rgb, image_size


class ImageEncoder:
    """Encodes images for pages; `size` is the longer side in pixels that they have at most."""

    def __init__(self, size: int, quality: int = 90) -> None:
        self.size = size
        self.quality = quality
        self._encoded: dict[tuple[str, int], str] = {}

    def data_uri(self, image: StoredImage, size: int) -> str:
        """The image as a data URI, a JPEG of our own without the metadata of the stored file."""
        key = (image.sha256, size)
        if key not in self._encoded:
            side = max(image_size(image))
            decoded = decode_rgb(image.stored, 4 if side >= 8 * size else 2 if side >= 4 * size else 1)
            decoded.thumbnail((size, size))
            decoded.info.clear()  # a comment would be written again
            out = io.BytesIO()
            decoded.save(out, "JPEG", quality=self.quality)
            self._encoded[key] = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
        return self._encoded[key]


def self_contained_page(template: Path, style: str, script: str, data: object, **values: object) -> bytes:
    """The page that a Jinja2 template makes of `style`, `script`, `data` as JSON, and other `values`.

    Its `policy` allows this script and style, data URIs as images, and no connection.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # The three are no markup: ours, and JSON in which nothing can end its element.
    page = environment.get_template(template.name).render(
        **values,
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        data=Markup(msgspec.json.encode(data).decode().replace("<", "\\u003c")),  # noqa: S704
    )
    return page.encode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
