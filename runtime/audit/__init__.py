"""The audit of a release: does a set of images give patients away? Findings, statistics, and the report that somebody signs.

    from lcmem_onnx import Screener
    from lcmem_onnx.runtime.audit import Request, audit
    from lcmem_onnx.runtime.audit.report import Shown, write_report

    done = audit(Screener(), Request(Path("released"), Path("reference"), Path("report"), holdout=Path("holdout")))
    print(write_report(done, Shown()))

Rooms, from the ground up: `statistics`, `thumbnails`, `pseudonyms`, `labels`, `patients`, `folders`; `agreement`, `embedding`,
`cache`, `looks`, `nearest`, `limits`, `outputs`; `sets`, `findings`; `reference`; `suspects`; `run`; `words`, `plots`, `document`;
`report`. It needs the extra `audit` (scipy, matplotlib, jinja2).
"""

from .run import Audit, Request, audit

__all__ = ["Audit", "Request", "audit"]
