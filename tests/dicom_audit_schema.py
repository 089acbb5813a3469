"""What PS3.15 A.5.1 (schema) and A.5.3 (messages) ask of an audit message, written down here apart from the code under test."""

from __future__ import annotations

import base64
import re
from xml.etree.ElementTree import Element

__all__ = ["check_message"]

TOKEN = r"[^\t\n\r]*"
CODE = {"csd-code": TOKEN, "codeSystemName": TOKEN, "displayName?": TOKEN, "originalText": TOKEN}
INTEGER, BOOLEAN = r"[+-]?\d+", r"true|false|1|0"
DATE_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
"""With its time zone, which A.5.2.5 asks for."""

SCHEMA: dict[str, tuple[dict[str, str], str]] = {
    # element: (its attributes, where ? marks those that may be missing; its elements, as a regular expression over their names)
    "AuditMessage": (
        {},
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification (ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {"EventActionCode?": "C|R|U|D|E", "EventDateTime": DATE_TIME, "EventOutcomeIndicator": "0|4|8|12"},
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "EventID": (CODE, ""),
    "EventTypeCode": (CODE, ""),
    "EventOutcomeDescription": ({}, ""),
    "ActiveParticipant": (
        {
            "UserID": "(?s:.+)",
            "AlternativeUserID?": ".*",
            "UserName?": ".*",
            "UserIsRequestor": BOOLEAN,
            "NetworkAccessPointID?": TOKEN,
            "NetworkAccessPointTypeCode?": "[1-5]",
        },
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "RoleIDCode": (CODE, ""),
    "MediaIdentifier": ({}, "MediaType "),
    "MediaType": (CODE, ""),
    "AuditSourceIdentification": ({"AuditEnterpriseSiteID?": TOKEN, "AuditSourceID": TOKEN}, "(AuditSourceTypeCode )*"),
    "AuditSourceTypeCode": ({"csd-code": "[1-9]"}, ""),
    "ParticipantObjectIdentification": (
        {
            "ParticipantObjectID": TOKEN,
            "ParticipantObjectTypeCode?": "[1-4]",
            "ParticipantObjectTypeCodeRole?": "[1-9]|1[0-9]|2[0-6]",
            "ParticipantObjectDataLifeCycle?": "[1-9]|1[0-5]",
            "ParticipantObjectSensitivity?": TOKEN,
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
    ),
    "ParticipantObjectIDTypeCode": (CODE, ""),
    "ParticipantObjectName": ({}, ""),
    "ParticipantObjectQuery": ({}, ""),
    "ParticipantObjectDetail": ({"type": TOKEN, "value": r"[A-Za-z0-9+/=]*"}, ""),
    "ParticipantObjectDescription": (
        {},
        "(MPPS )*(Accession )*(SOPClass )*(ParticipantObjectContainsStudy )?(Encrypted )?(Anonymized )?",
    ),
    "SOPClass": ({"UID?": r"[0-2](\.(0|[1-9][0-9]*))+", "NumberOfInstances": INTEGER}, "(Instance )*"),
}

EVENTS = {
    # event: (name, action codes, types that it must have one of; roles of which each needs one participant, media role)
    "110100": ("Application Activity", "E", {"110120", "110121"}, {"110150"}, None),
    "110103": ("DICOM Instances Accessed", "CRUD", set(), set(), None),
    "110106": ("Export", "R", set(), {"110153"}, "110154"),
    "110107": ("Import", "C", set(), {"110152"}, "110155"),
    "110113": ("Security Alert", "E", {str(code) for code in range(110126, 110139)}, set(), None),
    "110114": ("User Authentication", "E", {"110122", "110123"}, set(), None),
}


def check_message(message: Element) -> str:
    """Hold a message against the schema, and against the table of its event. Returns the event's code."""
    _check_element(message)
    identification = message.find("EventIdentification")
    assert identification is not None
    (event,) = identification.findall("EventID")
    code = str(event.get("csd-code"))
    name, actions, types, roles, media = EVENTS[code]
    assert (event.get("codeSystemName"), event.get("originalText")) == ("DCM", name)
    assert str(identification.get("EventActionCode")) in actions
    said = {kind.get("csd-code") for kind in identification.findall("EventTypeCode")}
    assert said <= types
    assert bool(said) == bool(types)
    participants = message.findall("ActiveParticipant")
    played = [{str(role.get("csd-code")) for role in one.findall("RoleIDCode")} for one in participants]
    assert all(any(role in roles_of_one for roles_of_one in played) for role in roles)
    requestors = [one.get("UserIsRequestor") for one in participants].count("true")
    assert requestors <= 1
    if code in ("110106", "110107"):
        assert requestors == 1
    if media:
        (carrier,) = (one for one, roles_of_one in zip(participants, played, strict=True) if media in roles_of_one)
        assert carrier.get("UserIsRequestor") == "false"
        assert carrier.find("MediaIdentifier/MediaType") is not None
    if code == "110114":
        assert not message.findall("ParticipantObjectIdentification")
        assert participants[0].get("NetworkAccessPointID")
        assert participants[0].get("NetworkAccessPointTypeCode")
    if code == "110103":
        assert len(participants) <= 2
    for subject in message.findall("ParticipantObjectIdentification"):
        _check_subject(subject, code)
    return code


def _check_subject(subject: Element, code: str) -> None:
    (id_type,) = subject.findall("ParticipantObjectIDTypeCode")
    kind = (id_type.get("csd-code"), id_type.get("codeSystemName"))
    role = (subject.get("ParticipantObjectTypeCode"), subject.get("ParticipantObjectTypeCodeRole"))
    if kind == ("2", "RFC-3881"):
        assert role == ("1", "1")  # a patient
        return
    assert role == (("2", "13") if kind == ("12", "RFC-3881") else ("2", "3"))
    details = {
        str(one.get("type")): base64.b64decode(str(one.get("value")), validate=True)
        for one in subject.iter("ParticipantObjectDetail")
    }
    if code == "110113":
        assert details["Alert Description"]
    if subject.find("ParticipantObjectDescription") is not None:
        assert kind == ("110180", "DCM") or code == "110103"  # SOP classes are a study's


def _check_element(element: Element) -> None:
    attributes, content = SCHEMA[element.tag]
    known = {name.rstrip("?"): pattern for name, pattern in attributes.items()}
    for name, value in element.attrib.items():
        assert name in known, f"{element.tag} has no {name}"
        assert re.fullmatch(known[name], value), f"{element.tag} {name}={value!r}"
    missing = {name for name in attributes if not name.endswith("?")} - set(element.attrib)
    assert not missing, f"{element.tag} lacks {missing}"
    names = "".join(f"{child.tag} " for child in element)
    assert re.fullmatch(content, names), f"{element.tag} holds {names}"
    for child in element:
        _check_element(child)
