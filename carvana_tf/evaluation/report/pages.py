"""Static pages: templates, style and script in one file that allows nothing else."""

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from carvana_tf.evaluation.gallery import Gallery
from carvana_tf.evaluation.report import tables

_HERE = Path(__file__).parent


def render(template: str, folder: Path = _HERE, /, **values: Any) -> str:
    """A page of a template that extends `base.html`.

    Args:
        template: Its name.
        folder: Where it is.
        values: What it shows; `data` is embedded as JSON for the script.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = tables.text
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        style=markupsafe.Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=markupsafe.Markup(script),
        # Only this script runs, and only pictures next to the page are loaded.
        policy=(
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
            "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
        ),
        **values,
    )
    return page.encode(errors="backslashreplace").decode()  # names may be no UTF-8


def photo_data(
    shown: Sequence[tables.Table],
    gallery: Gallery | None,
    score: str,
    *,
    gained: bool = False,
    details: Sequence[str] = (),
) -> dict[str, Any]:
    """What the script needs of a page with a table of photos.

    Args:
        shown: The tables of the page; the first is that of the photos.
        gallery: The photos with pictures.
        score: The column by which photos are worst or best.
        gained: Whether it is a difference.
        details: Columns that are searched, and shown below a picture.
    """
    heading = next(heading for key, heading, _ in shown[0].columns if key == score)
    return {
        "tables": {table.name: table.data for table in shown},
        "gallery": dataclasses.asdict(gallery) if gallery else None,
        "main": score,
        "score": heading,
        "gained": gained,
        "details": list(details),
    }
