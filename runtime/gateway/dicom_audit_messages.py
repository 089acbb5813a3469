"""Lines of the audit trail as DICOM's own audit messages (PS3.15 A.5), which hospitals collect.

    received                             Import (110107)
    forwarded, dead                      Export (110106), the second one failed
    screened: a match or an error        DICOM Instances Accessed (110103), failed; held: Security Alert (110113), Object Security
                                         Attributes Changed (110135)
    screened: clear                      DICOM Instances Accessed (110103), a message for many lines of a study: see `Cleared`
    viewed                               DICOM Instances Accessed (110103)
    quarantined after its screening      Security Alert (110113), Object Security Attributes Changed (110135)
    released, discarded, ...             Security Alert (110113), Use of Restricted Function (110132)
    login, logout, login-refused         User Authentication (110114)
    started, stopped                     Application Activity (110100)
    audit-resumed, audit-damaged    Security Alert (110113), Audit Recording Started (110134): where lines were damaged

Studies and patients are named by their pseudonyms, as in the trail. The line itself is in the message, so that a collector's copy
proves the trail.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

__all__ = ["MOST_BYTES", "Cleared", "audit_message", "cleared_message", "is_cleared"]


@dataclass(frozen=True)
class Code:
    """A coded term of the standard's (PS3.16), of RFC 3881's or of ours."""

    value: str
    meaning: str
    system: str = "DCM"


IMPORT, EXPORT = Code("110107", "Import"), Code("110106", "Export")
ACCESSED = Code("110103", "DICOM Instances Accessed")
ALERT = Code("110113", "Security Alert")
AUTHENTICATION = Code("110114", "User Authentication")
ACTIVITY = Code("110100", "Application Activity")
HELD, DECIDED = Code("110135", "Object Security Attributes Changed"), Code("110132", "Use of Restricted Function")
RECORDING = Code("110134", "Audit Recording Started")
STARTED, STOPPED = Code("110120", "Application Start"), Code("110121", "Application Stop")
LOGIN, LOGOUT = Code("110122", "Login"), Code("110123", "Logout")
APPLICATION = Code("110150", "Application")
DESTINATION, SOURCE = Code("110152", "Destination Role ID"), Code("110153", "Source Role ID")
DESTINATION_MEDIA, SOURCE_MEDIA, BY_URI = Code("110154", "Destination Media"), Code("110155", "Source Media"), Code("110037", "URI")
STUDY = Code("110180", "Study Instance UID")
PATIENT = Code("2", "Patient Number", "RFC-3881")
URI = Code("12", "URI", "RFC-3881")
INSTANCE = Code("sop-instance", "SOP Instance UID", "99LCMEM")
"""Of an object whose study is not known: it was received and not screened yet, or its header cannot be read."""
OBJECT = Code("object", "Object in the gateway", "99LCMEM")

SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = "0", "4", "8"
"""Of the event; in a Security Alert the second one makes it a warning (PS3.15 A.5.3.11)."""
DECISIONS = ("released", "discarded", "requeued", "screen-again")
MOST_BYTES = 32768
"""Of a message: as many as a collector must take (PS3.15 A.6)."""
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Participant:
    """A person, process or node that took part. It may have several roles (PS3.15 A.5.2)."""

    user: str
    requestor: bool
    roles: tuple[Code, ...] = ()
    address: str = ""
    media: Code | None = None


@dataclass
class Cleared:
    """Clear verdicts on one study's objects within a stretch of time, which one message tells of.

    There is one such line for each object. PS3.15 A.5.3.6 lets a message summarise a study, and records studies, not instances.

    Attributes:
        study, patient: pseudonyms; "" where the header names none.
        first, last: numbers of the first and last line, between which those of other studies may be.
        hash: sha256 of the last line: with it a collector's copy proves the trail up to there.
        lines: how many.
        classes: how many of each SOP class; "private" stands for all that are not the standard's.
        begin, end: times of the first and last line.
        since: when the first line was dealt with (`time.time`).
    """

    study: str
    patient: str
    first: int = 0
    last: int = 0
    hash: str = ""
    lines: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    begin: str = ""
    end: str = ""
    since: float = 0.0

    def add(self, line: Mapping[str, Any], line_hash: str) -> None:
        """Take a line in: one that `is_cleared`."""
        seq, moment = int(line["seq"]), str(line["time"])
        self.first, self.begin = (self.first, self.begin) if self.lines else (seq, moment)
        self.last, self.end, self.hash = seq, moment, line_hash
        self.lines += 1
        sop_class = str(line.get("sop_class") or "private")
        self.classes[sop_class] = self.classes.get(sop_class, 0) + 1


def is_cleared(line: Mapping[str, Any]) -> bool:
    """Whether a line is a clear verdict that held nothing: of these there are as many as objects, and `Cleared` sums them up."""
    return line["event"] == "screened" and line.get("verdict") == "clear" and line.get("state") != "quarantined"


def cleared_message(cleared: Cleared, source_id: str) -> str:
    """Return the XML of the message about clear verdicts."""
    message = _Message(ACCESSED, "R", cleared.end, SUCCESS)
    message.participants([Participant(source_id, True, (APPLICATION,))])
    message.source(source_id)
    details = {
        "verdict": "clear",
        "lcmem-onnx audit lines": f"{cleared.lines} of {cleared.first} to {cleared.last}",
        "from": cleared.begin,
        "to": cleared.end,
        "sha256 of the last audit line": cleared.hash,
    }
    id_type = STUDY if cleared.study else OBJECT
    message.object(id_type, cleared.study or "without a study", "3", details.items(), cleared.classes)
    if cleared.patient:
        message.patient(cleared.patient)
    return message.text()


def audit_message(line: Mapping[str, Any], source_id: str) -> str | None:
    """Return the XML of one line's message; None for lines that are not an event of DICOM's, and for those of `is_cleared`.

    Args:
        line: of the audit trail.
        source_id: the gateway's name in the collector's records.

    Raises:
        KeyError, TypeError, ValueError: the line lacks what each line of its event has.
    """
    event = line["event"]
    if event == "received":
        sender, address = str(line.get("calling_aet") or line.get("source")), str(line.get("address") or "")
        others = [
            Participant(sender, False, (SOURCE, SOURCE_MEDIA), address, BY_URI),
            Participant(source_id, True, (DESTINATION,)),
        ]
        return _of_line(line, source_id, IMPORT, "C", SUCCESS, None, others)
    if event in ("forwarded", "dead"):
        outcome = SUCCESS if event == "forwarded" else SERIOUS_FAILURE
        to = str(line["destination"])
        others = [
            Participant(source_id, True, (SOURCE,)),
            Participant(to, False, (DESTINATION, DESTINATION_MEDIA), str(line.get("address") or to), BY_URI),
        ]
        return _of_line(line, source_id, EXPORT, "R", outcome, None, others)
    if event == "quarantined" or (event == "screened" and line.get("state") == "quarantined"):
        return _of_line(line, source_id, ALERT, "E", MINOR_FAILURE, HELD, [Participant(source_id, True, (APPLICATION,))])
    if event == "screened" and line.get("verdict") in ("match", "error"):
        return _of_line(line, source_id, ACCESSED, "R", MINOR_FAILURE, None, [Participant(source_id, True, (APPLICATION,))])
    if event == "viewed":
        person = Participant(str(line["who"]), True, (), str(line.get("address") or ""))
        return _of_line(line, source_id, ACCESSED, "R", SUCCESS, None, [person, Participant(source_id, False, (APPLICATION,))])
    if event in DECISIONS:
        person = Participant(str(line["who"]), True, (), str(line.get("address") or ""))
        return _of_line(line, source_id, ALERT, "E", SUCCESS, DECIDED, [person])
    if event in ("login", "logout", "login-refused"):
        kind, outcome = LOGOUT if event == "logout" else LOGIN, MINOR_FAILURE if event == "login-refused" else SUCCESS
        person = Participant(str(line.get("who") or "unknown"), True, (), str(line.get("address") or "unknown"))
        others = [person, Participant(source_id, False, (APPLICATION,))]
        return _of_line(line, source_id, AUTHENTICATION, "E", outcome, kind, others)
    if event in ("started", "stopped"):
        kind = STARTED if event == "started" else STOPPED
        return _of_line(line, source_id, ACTIVITY, "E", SUCCESS, kind, [Participant(source_id, False, (APPLICATION,))])
    if event == "audit-damaged" or (event == "audit-resumed" and line.get("completed") is False):
        return _of_line(line, source_id, ALERT, "E", MINOR_FAILURE, RECORDING, [Participant(source_id, True, (APPLICATION,))])
    return None


def _of_line(
    line: Mapping[str, Any],
    source_id: str,
    event: Code,
    action: str,
    outcome: str,
    kind: Code | None,
    participants: Iterable[Participant],
) -> str:
    why = str(line.get("reason") or line.get("failure") or line.get("what") or line["event"])
    message = _Message(event, action, str(line["time"]), outcome, kind, why)
    message.participants(participants)
    message.source(source_id)
    copy = json.dumps(dict(line), separators=(",", ":"))
    details = {"lcmem-onnx audit line": copy}
    if event is ALERT:
        details = {"Alert Description": f"{line['event']}: {why}", **details}
    classes = {str(line["sop_class"]): 1} if line.get("sop_class") else {}
    if line.get("study"):
        message.object(STUDY, str(line["study"]), "3", details.items(), classes)
    elif line.get("sop_instance"):
        message.object(INSTANCE, str(line["sop_instance"]), "3", details.items(), {})
    elif line.get("object"):
        message.object(OBJECT, str(line["object"]), "3", details.items(), {})
    elif line.get("file"):
        message.object(URI, f"file:{line['file']}", "13", details.items(), {})
    if line.get("patient"):
        message.patient(str(line["patient"]))
    return message.text()


class _Message:
    """An AuditMessage, built in the order of PS3.15 A.5.1."""

    def __init__(self, event: Code, action: str, moment: str, outcome: str, kind: Code | None = None, why: str = "") -> None:
        self._root = ElementTree.Element("AuditMessage")
        identification = self._add(
            "EventIdentification", EventActionCode=action, EventDateTime=moment, EventOutcomeIndicator=outcome
        )
        _code(identification, "EventID", event)
        if kind:
            _code(identification, "EventTypeCode", kind)
        if outcome != SUCCESS:
            ElementTree.SubElement(identification, "EventOutcomeDescription").text = _clean(why)

    def participants(self, participants: Iterable[Participant]) -> None:
        for one in participants:
            where = {}
            if one.address:
                where = {"NetworkAccessPointID": one.address, "NetworkAccessPointTypeCode": _address_type(one.address)}
            who = {"UserID": one.user, "UserIsRequestor": "true" if one.requestor else "false"}
            participant = self._add("ActiveParticipant", **who, **where)
            for role in one.roles:
                _code(participant, "RoleIDCode", role)
            if one.media:
                _code(ElementTree.SubElement(participant, "MediaIdentifier"), "MediaType", one.media)

    def source(self, source_id: str) -> None:
        source = self._add("AuditSourceIdentification", AuditSourceID=source_id)
        ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # an application server

    def object(self, id_type: Code, name: str, role: str, details: Iterable[tuple[str, str]], classes: Mapping[str, int]) -> None:
        """A system object, and its SOP classes. Its pseudonym is its name too, since the schema asks for one.

        A detail that would make the message too long for collectors is left out: the trail itself has it.
        """
        subject = self._add(
            "ParticipantObjectIdentification",
            ParticipantObjectID=name,
            ParticipantObjectTypeCode="2",
            ParticipantObjectTypeCodeRole=role,
        )
        _code(subject, "ParticipantObjectIDTypeCode", id_type)
        ElementTree.SubElement(subject, "ParticipantObjectName").text = _clean(name)
        room = MOST_BYTES - 8192
        for kind, text in details:
            value = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode("ascii")
            room -= len(value)
            if room < 0:
                kind, value = f"{kind}: too long", base64.b64encode(str(len(text)).encode()).decode("ascii")
            ElementTree.SubElement(subject, "ParticipantObjectDetail", type=kind, value=value)
        if classes:
            description = ElementTree.SubElement(subject, "ParticipantObjectDescription")
            for sop_class, count in classes.items():
                uid = {} if sop_class == "private" else {"UID": _clean(sop_class)}
                ElementTree.SubElement(description, "SOPClass", {**uid, "NumberOfInstances": str(count)})

    def patient(self, pseudonym: str) -> None:
        subject = self._add(
            "ParticipantObjectIdentification",
            ParticipantObjectID=pseudonym,
            ParticipantObjectTypeCode="1",
            ParticipantObjectTypeCodeRole="1",
        )
        _code(subject, "ParticipantObjectIDTypeCode", PATIENT)
        ElementTree.SubElement(subject, "ParticipantObjectName").text = _clean(pseudonym)

    def text(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, name: str, **attributes: str) -> ElementTree.Element:
        return ElementTree.SubElement(self._root, name, {key: _clean(value) for key, value in attributes.items()})


def _clean(text: str) -> str:
    """Replace what XML cannot hold: an AE title comes from outside."""
    return NOT_XML.sub("\ufffd", text)


def _address_type(address: str) -> str:
    """1: a machine's name. 2: an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "1"
    return "2"


def _code(parent: ElementTree.Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.system, "originalText": code.meaning}
    ElementTree.SubElement(parent, name, attributes)
