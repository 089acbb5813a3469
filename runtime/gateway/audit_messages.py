"""Lines of the audit trail as DICOM's own audit messages (PS3.15 A.5), which hospitals collect.

    received                        Import (110107)
    forwarded                       Export (110106)
    screened and held, quarantined  Security Alert (110113), Object Security Attributes Changed
    released, discarded, ...        Security Alert (110113), Use of Restricted Function
    started, stopped                Application Activity (110100)

A study is named by its pseudonym, as in the trail. The line itself is in the message, so that a collector's copy proves the trail.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

__all__ = ["audit_message"]

Code = tuple[str, str]

IMPORT, EXPORT, ALERT, ACTIVITY = (
    ("110107", "Import"),
    ("110106", "Export"),
    ("110113", "Security Alert"),
    ("110100", "Application Activity"),
)
HELD, DECIDED = ("110135", "Object Security Attributes Changed"), ("110132", "Use of Restricted Function")
STARTED, STOPPED = ("110120", "Application Start"), ("110121", "Application Stop")
APPLICATION, DESTINATION, SOURCE = (
    ("110150", "Application"),
    ("110152", "Destination Role ID"),
    ("110153", "Source Role ID"),
)
SUCCESS, MINOR_FAILURE = "0", "4"
"""Of the event; in a Security Alert the second one makes it a warning (PS3.15 A.5.3.11)."""
BY_SOMEBODY = ("released", "discarded", "requeued", "screen-again")


def audit_message(line: Mapping[str, Any], source_id: str) -> str | None:
    """The XML of one line's message; None for lines that are no event of DICOM's.

    Args:
        line: of the audit trail.
        source_id: what this gateway is called at the collector's.
    """
    event = line["event"]
    if event == "received":
        callers = [(str(line.get("calling_aet") or line.get("source")), False, SOURCE, str(line.get("address") or ""))]
        return _message(line, source_id, IMPORT, "C", SUCCESS, None, [*callers, (source_id, True, DESTINATION, "")])
    if event == "forwarded":
        others = [(str(line["destination"]), False, DESTINATION, "")]
        return _message(line, source_id, EXPORT, "R", SUCCESS, None, [(source_id, True, SOURCE, ""), *others])
    if event == "quarantined" or (event == "screened" and line.get("state") == "quarantined"):
        return _message(line, source_id, ALERT, "E", MINOR_FAILURE, HELD, [(source_id, True, APPLICATION, "")])
    if event in BY_SOMEBODY:
        return _message(line, source_id, ALERT, "E", SUCCESS, DECIDED, [(str(line.get("who")), True, None, "")])
    if event in ("started", "stopped"):
        kind = STARTED if event == "started" else STOPPED
        return _message(line, source_id, ACTIVITY, "E", SUCCESS, kind, [(source_id, False, APPLICATION, "")])
    return None


def _message(
    line: Mapping[str, Any],
    source_id: str,
    event: Code,
    action: str,
    outcome: str,
    kind: Code | None,
    participants: list[tuple[str, bool, Code | None, str]],
) -> str:
    root = ElementTree.Element("AuditMessage")
    identification = ElementTree.SubElement(
        root, "EventIdentification", EventActionCode=action, EventDateTime=line["time"], EventOutcomeIndicator=outcome
    )
    _code(identification, "EventID", event)
    if kind:
        _code(identification, "EventTypeCode", kind)
    if outcome != SUCCESS:
        ElementTree.SubElement(identification, "EventOutcomeDescription").text = str(line.get("reason"))
    for user, requestor, role, address in participants:
        where = {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": "2"} if address else {}
        who = {"UserID": user, "UserIsRequestor": "true" if requestor else "false"}
        participant = ElementTree.SubElement(root, "ActiveParticipant", who | where)
        if role:
            _code(participant, "RoleIDCode", role)
    source = ElementTree.SubElement(root, "AuditSourceIdentification", AuditSourceID=source_id)
    ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # an application server
    if line.get("object"):
        subject = ElementTree.SubElement(
            root,
            "ParticipantObjectIdentification",
            ParticipantObjectID=str(line.get("study") or line.get("sop_instance") or line["object"]),
            ParticipantObjectTypeCode="2",
            ParticipantObjectTypeCodeRole="3",
        )
        _code(subject, "ParticipantObjectIDTypeCode", ("110180", "Study Instance UID"))
        text = json.dumps(dict(line), separators=(",", ":"))
        ElementTree.SubElement(
            subject, "ParticipantObjectDetail", type="lcmem-onnx audit line", value=base64.b64encode(text.encode()).decode("ascii")
        )
    return ElementTree.tostring(root, encoding="unicode")


def _code(parent: ElementTree.Element, name: str, code: Code) -> None:
    ElementTree.SubElement(parent, name, {"csd-code": code[0], "codeSystemName": "DCM", "originalText": code[1]})
