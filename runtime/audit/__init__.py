"""The audit of a release: does a set of images give patients away? Findings, statistics, and the report that somebody signs.

    from lcmem_onnx import Screener
    from lcmem_onnx.runtime.audit import Request, audit
    from lcmem_onnx.runtime.audit.report.html_report import Shown, write_report

    done = audit(Screener(), Request(Path("released"), Path("reference"), Path("report"), holdout=Path("holdout")))
    print(write_report(done, Shown()))

Read `run.audit` first: it is the whole audit in order. Modules, from the ground up:

* data: `request`, `sets`, `patients`, `reference`, `findings`, `result`
* embedding: `embedding`, `embedding_cache`, `tta`, `thumbnails`
* searching and comparing: `neighbours`, `best_pairs`, `pixel_match`, `suspects`
* judging: `statistics`, `thresholds`
* the audit: `output_folder`, `inputs`, `run`; then `verdict` and `report`

It needs the extra `audit` (scipy, matplotlib, jinja2).
"""

from .run import Audit, Request, audit

__all__ = ["Audit", "Request", "audit"]
