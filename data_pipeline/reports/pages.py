"""HTML pages that hold everything they show."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from magicdistill.data_pipeline.io.whole_files import write_whole


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Write the page that a template makes of values; it may include `page.css.jinja`."""
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
    """Return the address of content that a page holds; empty for nothing."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else ""
