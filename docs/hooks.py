"""What the site's builder needs to know of this repository: mkdocs calls these functions.

The README becomes the first page, and links that leave docs/, such as those to the source, become
links to the repository; the files themselves keep what a reader of the repository follows.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
log = logging.getLogger("mkdocs.hooks")  # its warnings end a strict build


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn each relative link into one of the site, or else one of the repository."""
    index = page.file.src_uri == "index.md"
    written = ROOT if index else (ROOT / "docs" / page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        target, anchor = Path(os.path.normpath(written / link[1])), link[2] or ""
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link[1])
        if target.is_file() and target.is_relative_to(ROOT / "docs"):
            return f"]({target.relative_to(ROOT / 'docs')}{anchor})"
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{target.relative_to(ROOT)}{anchor})"

    return re.sub(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]+)?\)", rewritten, markdown)
