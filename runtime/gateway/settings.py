"""What gateway.toml holds, as frozen dataclasses. The names are the file's keys; a field's text here is its documentation.

Paths in the file are relative to the file's own folder, and absolute in here. `config.read_config` makes these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..system.toml_config import ConfigPath, Range

__all__ = [
    "Action",
    "AuditSettings",
    "Destination",
    "FolderSettings",
    "GallerySettings",
    "HttpCaller",
    "HttpSettings",
    "LogSettings",
    "ModelSettings",
    "ReceiveSettings",
    "Retry",
    "Rule",
    "ScreenSettings",
    "Settings",
    "SpoolSettings",
    "SyslogSettings",
    "TlsClient",
    "TlsServer",
]

Action = Literal["forward", "keep", "quarantine"]
"""forward: to the rule's destinations. keep: it stays in the spool and goes nowhere. quarantine: until somebody decides."""

_POSITIVE = Range(0, 1e9, open_below=True, open_above=True, rule="it must be above 0 and below 1e9")
PositiveInt = Annotated[int, _POSITIVE]
PositiveFloat = Annotated[float, _POSITIVE]
Port = Annotated[int, Range(0, 65535, rule="a port is between 0 and 65535")]
Score = Annotated[float, Range(0, 1, open_below=True, open_above=True, rule="a score is between 0 and 1")]
Share = Annotated[float, Range(0, 1, open_below=True, open_above=True, rule="a share of strangers' images is between 0 and 1")]


@dataclass(frozen=True)
class TlsServer:
    """TLS where the gateway is called."""

    certificate: ConfigPath
    """The chain, PEM."""
    key: ConfigPath
    client_ca: ConfigPath | None = None
    """PEM: callers must show a certificate that one of these signed. Without it anybody may call."""


@dataclass(frozen=True)
class TlsClient:
    """TLS where the gateway calls."""

    ca: ConfigPath | None = None
    """PEM: who may have signed the other side's certificate; the system's list, if nothing is said."""
    certificate: ConfigPath | None = None
    key: ConfigPath | None = None
    server_name: str | None = None
    """The name in the other side's certificate, where it is not `host`."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where objects wait."""

    folder: ConfigPath
    min_free_mb: PositiveInt = 2048
    """Below so much free space nothing is taken in any more: C-STORE is answered 0xA700, HTTP 507."""
    remember_days: PositiveInt = 30
    """How long an object that was forwarded or discarded is remembered: until then it is no new one when it comes again."""


@dataclass(frozen=True)
class ModelSettings:
    """What scores the images."""

    bundle: ConfigPath | None = None
    """The model of the package, if nothing is said."""
    variant: str = "auto"
    provider: str = "auto"
    threads: int | None = None
    isolate: bool = True
    """Decode each object in a process of its own, under limits on memory and time: see `runtime.images.sandbox`."""


@dataclass(frozen=True)
class ScreenSettings:
    """Bounds on the screening of one object."""

    timeout_seconds: PositiveFloat = 300.0
    """An object that takes longer is quarantined as `timed-out`."""
    nearest: PositiveInt = 3
    """Gallery images named in the audit trail, by pseudonym."""


@dataclass(frozen=True)
class ReceiveSettings:
    """The C-STORE SCP. Answers C-ECHO and takes every storage SOP class in every transfer syntax."""

    aet: str = "LCMEM"
    host: str = "127.0.0.1"
    port: Port = 11112
    calling_aets: tuple[str, ...] = ()
    """Who may call; nobody, if it is empty."""
    addresses: tuple[str, ...] = ()
    """Networks that may call, as 10.1.0.0/16; all, if it is empty."""
    check_called_aet: bool = True
    """Refuse callers that ask for another AE title than ours."""
    tls: TlsServer | None = None
    max_associations: PositiveInt = 25
    max_connections: PositiveInt = 100
    """Connections that have not become associations yet; beyond, the oldest of them is closed."""
    max_pdu: PositiveInt = 1 << 20
    """Bytes: what callers are told, and what they are held to."""
    max_object_mb: PositiveInt = 2048
    opening_seconds: PositiveFloat = 5.0
    """For the TLS handshake and the association request."""
    idle_seconds: PositiveFloat = 60.0
    """Silence after which an association is closed."""
    pdu_seconds: PositiveFloat = 30.0
    """From a PDU's first byte to its last."""
    object_seconds: PositiveFloat = 600.0
    """From an object's first byte to its last."""


@dataclass(frozen=True)
class HttpCaller:
    """Somebody who may call over HTTP, told by a bearer token or by a client certificate."""

    name: str
    """Stands for the calling AE title in rules, and for who did it in the audit trail."""
    may: tuple[Literal["store", "screen", "status", "quarantine"], ...]
    """store: STOW-RS. screen: POST /v1/screen. status: the status page and metrics. quarantine: see images there and decide."""
    token_file: ConfigPath | None = None
    """A file with the token, 32 characters or more, in one line."""
    token_sha256: str = ""
    """In place of the file: the token's sha256, hexadecimal, which need not be kept secret."""
    certificate: str = ""
    """In place of a token: the common name in a certificate that `tls.client_ca` signed."""


@dataclass(frozen=True)
class HttpSettings:
    """STOW-RS, POST /v1/screen, health, metrics and the status page."""

    host: str = "127.0.0.1"
    """Another than the loopback needs `tls`."""
    port: Port = 8080
    caller: tuple[HttpCaller, ...] = ()
    tls: TlsServer | None = None
    max_object_mb: PositiveInt = 2048
    max_requests: PositiveInt = 16
    """Requests with a body that are answered at once; beyond, 503."""
    max_connections: PositiveInt = 200
    opening_seconds: PositiveFloat = 10.0
    """For a request's head, from the connection on."""
    idle_seconds: PositiveFloat = 30.0
    """Silence within a body after which it is given up."""
    slowest_kb_per_second: PositiveFloat = 4.0
    """What a body must keep to on average, after the first minute."""


@dataclass(frozen=True)
class FolderSettings:
    """A watched folder: files that have stopped changing are taken in, and are gone from the folder."""

    path: ConfigPath
    settle_seconds: PositiveFloat = 5.0
    """A file is taken when its size and time have not changed for so long."""
    poll_seconds: PositiveFloat = 2.0
    name: str = "folder"
    """Stands for the calling AE title in rules."""


@dataclass(frozen=True)
class GallerySettings:
    """An index to screen against, as `lcmem-onnx index build` makes it."""

    name: str
    index: ConfigPath
    threshold: Score | None = None
    """If nothing is said: what `lcmem-onnx calibrate` set for the index, else what `fpir` gives, else the bundle's."""
    fpir: Share | None = None
    """Share of strangers' images that may be flagged, above 0 and below 1, where the bundle's strangers set the threshold; .05, if
    nothing is said."""
    groups: tuple[str, ...] = ()
    """Groups of the index (`index build --gallery`) to screen against; all, if it is empty."""


@dataclass(frozen=True)
class Destination:
    """Where clear objects go."""

    name: str
    kind: Literal["dicom", "stow"] = "dicom"
    host: str = ""
    port: Port = 0
    aet: str = ""
    """The other side's, for C-STORE."""
    calling_aet: str = "LCMEM"
    url: str = ""
    """Of the DICOMweb service, for STOW-RS; /studies is added."""
    token_file: ConfigPath | None = None
    tls: TlsClient | None = None
    timeout_seconds: PositiveFloat = 60.0
    """For a connection, and for an answer."""


@dataclass(frozen=True)
class Rule:
    """Which objects it is about, what they are screened against, and what happens then. The first rule that fits counts.

    An object that no rule fits goes to quarantine. Patterns are as in shells: `CT*`.
    """

    name: str
    gallery: str
    calling_aet: tuple[str, ...] = ()
    """AE titles of callers, or names of watched folders; all, if it is empty."""
    called_aet: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    sop_class: tuple[str, ...] = ()
    """UIDs, or pydicom's keywords: CTImageStorage."""
    source: tuple[Literal["c-store", "folder", "stow", "screen"], ...] = ()
    on_clear: Action = "forward"
    on_match: Action = "quarantine"
    on_error: Literal["keep", "quarantine"] = "quarantine"
    on_no_pixels: Action = "quarantine"
    """What happens to reports, segmentations without pixels and the like, in which no image can be looked at."""
    hold_notes: tuple[str, ...] = (
        "appended-data",
        "burned-in-annotation",
        "embedded-image",
        "encapsulated-document",
        "icon",
        "nested-pixels",
    )
    """Clear objects with one of these flags (see `runtime.images.content_flags`) are quarantined all the same: they hold images or
    texts that nobody looked at. `overlay` and `private-data` are others; many modalities write them."""
    forward_to: tuple[str, ...] = ()
    """Destinations of what is clear, and of what has no pixels, by name."""
    forward_matches_to: tuple[str, ...] = ()
    """Destinations of matches, for `on_match = "forward"`: a review station, say. None of `forward_to`."""


@dataclass(frozen=True)
class Retry:
    """How forwarding is tried again: after `first_seconds`, then twice that, and so on up to `longest_seconds`, with jitter."""

    first_seconds: PositiveFloat = 5.0
    longest_seconds: PositiveFloat = 900.0
    attempts: PositiveInt = 100
    """After so many an object is dead: it stays in the spool until `gateway requeue`."""


@dataclass(frozen=True)
class SyslogSettings:
    """DICOM audit messages (PS3.15 A.5) to a collector, RFC 5424 over TLS (RFC 5425)."""

    host: str
    port: Port = 6514
    tls: TlsClient | None = field(default_factory=TlsClient)
    source_id: str = "lcmem-gateway"
    summary_seconds: PositiveFloat = 60.0
    """Clear verdicts on a study's objects are collected for so long, and sent as one message."""
    max_lag_seconds: PositiveFloat = 300.0
    """`/readyz` answers 503 when a line has waited longer for the collector. Until then it says `degraded`, with 200."""


@dataclass(frozen=True)
class AuditSettings:
    """The audit trail."""

    folder: ConfigPath | None = None
    """`audit` in the spool's folder, if nothing is said."""
    rotate_mb: PositiveInt = 64
    """A file of the trail that has grown so large is followed by another; the chain goes on."""
    syslog: SyslogSettings | None = None


@dataclass(frozen=True)
class LogSettings:
    """Lines of JSON on stderr, without patients' data."""

    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class Settings:
    """The whole file."""

    spool: SpoolSettings
    site_key: ConfigPath
    """32 random bytes in hexadecimal, which turn names and UIDs into pseudonyms. Kept apart from logs and audit trail."""
    gallery: tuple[GallerySettings, ...] = ()
    rule: tuple[Rule, ...] = ()
    destination: tuple[Destination, ...] = ()
    model: ModelSettings = field(default_factory=ModelSettings)
    screen: ScreenSettings = field(default_factory=ScreenSettings)
    receive: ReceiveSettings | None = None
    http: HttpSettings | None = None
    folder: tuple[FolderSettings, ...] = ()
    retry: Retry = field(default_factory=Retry)
    audit: AuditSettings = field(default_factory=AuditSettings)
    log: LogSettings = field(default_factory=LogSettings)

    @property
    def audit_folder(self) -> Path:
        return self.audit.folder or self.spool.folder / "audit"
