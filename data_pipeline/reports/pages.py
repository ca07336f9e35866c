"""Self-contained HTML pages: pictures and styles are inside the file."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from magicdistill.data_pipeline.io.whole_files import write_whole


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Render a Jinja template with values and write the page; it may include `page.css.jinja`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(**values)
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def data_uri(kind: str, data: bytes) -> str:
    """Return data of a MIME type `kind` as a data URI; empty if there is no data."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else ""
