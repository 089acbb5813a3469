"""Draw `docs/pictures/terminal.svg`: what a terminal shows of a scan of the example images.

Usage: python docs/pictures/make_terminal.py
"""

from __future__ import annotations

import os
import pty
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 120
COMMAND = ("lcmem-onnx", "scan", "queries", "--against", "gallery", "--quiet")
FOUND = 1
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: DejaVu Sans Mono, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""rich's own frame without its fonts from the network."""


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    program = shutil.which(COMMAND[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        sys.exit("lcmem-onnx is not installed in this environment: run pip install -e '.[cpu]'")
    os.chdir(root / "examples" / "pictures")
    os.environ.update(COLUMNS=str(COLUMNS), TERM="xterm-256color")
    shown = bytearray()

    def keep(descriptor: int) -> bytes:
        chunk = os.read(descriptor, 65536)
        shown.extend(chunk)
        return chunk

    code = os.waitstatus_to_exitcode(pty.spawn([program, *COMMAND[1:]], keep))
    if code != FOUND:
        sys.exit(f"the scan ended with exit code {code}, expected {FOUND}: nothing is drawn")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text(f"$ {' '.join(COMMAND[:-1])}", "bold"))
    console.print(Text.from_ansi(shown.decode().replace("\r\n", "\n").strip("\n")))
    console.print(Text("$ echo $?\n1", "bold"))
    console.save_svg(str(root / "docs/pictures/terminal.svg"), title="lcmem-onnx", theme=MONOKAI, code_format=SVG, unique_id="scan")


if __name__ == "__main__":
    main()
