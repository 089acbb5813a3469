"""The page for the person on duty: how it goes, what is held, the two images side by side, and the decision.

Plain HTML, no script. A token with `status` shows counts and pseudonyms; `quarantine` is needed for the images.
Each page of details and each image goes into the audit trail before a byte of it is sent, as does each decision, with the name that
was typed at the log-in. Where the trail cannot be written, nothing is shown.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ...errors import GatewayError
from ..delivery_queue import Deliveries
from ..health import Check
from ..json_logging import Log
from ..quarantine import DECIDABLE, Quarantine, View
from ..settings import HttpSettings, Settings
from ..spool import Item, Spool, State
from .bodies import Refused, small_body
from .callers import COOKIE, SECURE_COOKIE, SHORTEST_TOKEN, Callers, Session, Sessions
from .images import Drawer, NotDrawnError

__all__ = ["FOLDER", "Pages"]

FOLDER = Path(__file__).parent / "pages"
REFRESH_SECONDS = 10
SHOWN = 50
LAST = 15
FORM_BYTES = 4096
SLOW_SECONDS = 300.0
"""An object that waits longer for its screening is worth a word."""
PERIODS = (60.0, 3600.0, 86400.0)
WRONG_TOKEN_SECONDS = 1.0
WHY = {
    "at-or-above-threshold": "like an image of the gallery",
    "below-threshold": "unlike all of the gallery",
    "no-pixels": "holds no image",
    "blank": "shows nothing",
    "not-dicom": "is no DICOM object",
    "damaged": "cannot be decoded",
    "no-rule": "no rule fits",
    "timed-out": "took too long",
    "suspicious-header": "its header is not a sound object's",
    "unscreened-content": "holds more than was screened",
    "search-incomplete": "the search may have missed a match",
    "identity-mismatch": "names two different objects",
    "index-unavailable": "the gallery could not be opened",
}
"""Reasons in words; the code itself is the cell's title."""
NOW = {
    State.SCREENED: "to be forwarded",
    State.ANSWERED: "answered and gone",
    State.DEAD: "could not be forwarded",
    State.QUARANTINED: "in quarantine",
}

log = Log("http")


class Pages:
    """The pages of one gateway; its methods answer requests."""

    def __init__(
        self, settings: Settings, http: HttpSettings, spool: Spool, callers: Callers, checks: Callable[[], Mapping[str, Check]]
    ) -> None:
        self._settings = settings
        self._http = http
        self._spool = spool
        self._callers = callers
        self._checks = checks
        self._quarantine = Quarantine(spool)
        self._deliveries = Deliveries(spool)
        self.sessions = Sessions()
        self._drawer = Drawer()
        self._pages = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, auto_reload=False)
        self._cookie = SECURE_COOKIE if http.tls else COOKIE

    # -- logging in ------------------------------------------------------------------------------------------------

    def session(self, request: Request) -> Session | None:
        return self.sessions.get(request.cookies.get(self._cookie))

    async def login_form(self, request: Request) -> Response:
        if self.session(request):
            return RedirectResponse("/", 303)
        return self._login(request)

    def _login(self, request: Request, problem: str = "", person: str = "", status: int = 200) -> Response:
        caller = self._callers.of_certificate(certificate_of(request))
        name = caller.name if caller else ""
        return self._page("login.html", None, status, problem=problem, person=person, certificate=name)

    async def login(self, request: Request) -> Response:
        _check_same_origin(request)
        form = await self._form(request)
        person = _name(form.get("person", ""))
        caller = self._callers.of_certificate(certificate_of(request)) or self._callers.of_token(form.get("token", "").strip())
        address = _address(request)
        if caller is None or "status" not in caller.may:
            log.warning("login-refused", address=address)
            await run_in_threadpool(self._spool.audit.note, "login-refused", who=person, address=address)
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return self._login(request, "This token does not open the page.", person, 401)
        if not person:
            return self._login(request, "Give your name, which goes into the audit trail.", person, 400)
        session = Session(caller, person)
        log.info("login", caller=caller.name, address=address)
        await run_in_threadpool(self._spool.audit.note, "login", who=session.who, address=address)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._cookie, self.sessions.open(session), httponly=True, samesite="strict", secure=self._http.tls is not None, path="/"
        )
        return answer

    async def logout(self, request: Request) -> Response:
        session = self.session(request)
        if session:
            self._check_csrf(session, await self._form(request))
            self.sessions.close(request.cookies.get(self._cookie))
            await run_in_threadpool(self._spool.audit.note, "logout", who=session.who, address=_address(request))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._cookie, path="/", httponly=True, samesite="strict", secure=self._http.tls is not None)
        return answer

    # -- the overview ----------------------------------------------------------------------------------------------

    async def overview(self, request: Request) -> Response:
        session = self.session(request)
        if session is None:
            return RedirectResponse("/login", 303)
        facts = await run_in_threadpool(self._facts)
        told = {"released": "Released: it is on its way.", "discarded": "Discarded."}.get(request.query_params.get("done", ""), "")
        return self._page(
            "overview.html", session, refresh=REFRESH_SECONDS, told=told, may_decide="quarantine" in session.caller.may, **facts
        )

    def _facts(self) -> dict[str, Any]:
        spool = self._spool
        counts = spool.counts()
        pending = sum(self._deliveries.pending().values())
        oldest = spool.oldest_waiting()
        waiting = time.time() - oldest if oldest else 0.0
        total, _, free = shutil.disk_usage(self._settings.spool.folder)
        troubles = [
            f"{'degraded' if check.ready else 'not ready'}: {name}{f', {check.detail}' if check.detail else ''}"
            for name, check in self._checks().items()
            if check.level != "ok"
        ]
        if waiting > SLOW_SECONDS:
            troubles.append(f"an object has waited {_span(waiting)} for its screening")
        if counts[State.DEAD]:
            troubles.append(f"{counts[State.DEAD]} could not be forwarded: see lcmem-onnx gateway status")
        for failing in spool.database.read(
            "SELECT destination, count(*) AS objects, max(failure) AS failure FROM deliveries"
            " WHERE state = 'pending' AND attempts > 0 GROUP BY destination"
        ):
            troubles.append(
                f"{failing['destination']} does not take objects ({failing['failure']}), waiting for it: {failing['objects']}"
            )
        held = self._quarantine.list(SHOWN)
        last = spool.database.read("SELECT * FROM objects WHERE verdict IS NOT NULL ORDER BY number DESC LIMIT ?", (LAST,))
        now = datetime.now().astimezone()
        return {
            "health": {"ok": not troubles, "text": "; ".join(troubles) or "objects are received, screened and forwarded"},
            "tiles": [
                _tile(
                    "To be screened",
                    counts[State.RECEIVED],
                    f"oldest {_span(waiting)}" if oldest else "",
                    "bad" if waiting > SLOW_SECONDS else "",
                ),
                _tile("To be forwarded", pending, ""),
                _tile(
                    "In quarantine",
                    counts[State.QUARANTINED],
                    "for somebody to decide" if counts[State.QUARANTINED] else "",
                    "warn" if counts[State.QUARANTINED] else "",
                ),
                _tile("Given up", counts[State.DEAD], "could not be forwarded", "bad" if counts[State.DEAD] else ""),
                _tile(
                    "Free on the spool’s disk",
                    f"{free / 1e9:.0f} GB",
                    f"of {total / 1e9:.0f} GB",
                    "" if spool.has_room() else "bad",
                ),
            ],
            "rates": self._rates(),
            "held": [self._row(item) for item in held],
            "held_total": counts[State.QUARANTINED],
            "verdicts": [self._row(Item.of(row)) for row in last],
            "now": now.strftime("%H:%M:%S"),
            "now_iso": now.isoformat(timespec="seconds"),
        }

    def _rates(self) -> list[dict[str, Any]]:
        """Objects in the last minute, hour and day, by when they came."""
        now = time.time()
        sums = ", ".join(
            f"sum(arrived > {now - period:f}), sum(arrived > {now - period:f} AND verdict = 'match'),"
            f" sum(arrived > {now - period:f} AND verdict = 'error')"
            for period in PERIODS
        )
        (row,) = self._spool.database.read(f"SELECT {sums} FROM objects WHERE arrived > ?", (now - PERIODS[-1],))
        values = [value or 0 for value in row]
        return [{"name": name, "values_": values[at::3]} for at, name in enumerate(("received", "matches", "errors"))]

    def _row(self, item: Item) -> dict[str, Any]:
        moment = datetime.fromtimestamp(item.arrived).astimezone()
        today = moment.date() == datetime.now().astimezone().date()
        nearest = item.result.get("nearest") or []
        return {
            "id": item.id,
            "short": item.id[:8],
            "pseudonym": self._spool.site_key.short("uid", item.sop_instance)[:12] or item.id[:12],
            "iso": moment.isoformat(timespec="seconds"),
            "when": moment.strftime("%H:%M:%S" if today else "%d %b %H:%M"),
            "caller": item.calling_aet or item.source.value,
            "verdict": item.verdict or "error",
            "reason": item.reason or "",
            "why": WHY.get(item.reason or "", (item.reason or "").replace("-", " ")),
            "now": NOW.get(item.state, item.state.value),
            "score": f"{nearest[0]['score']:.4f}" if nearest else "–",
            "state": item.state.value,
        }

    # -- what is held ----------------------------------------------------------------------------------------------

    async def held(self, request: Request) -> Response:
        session, item = await self._decider(request)
        frame = _frame(request, item.result.get("worst_frame") or 0)
        problem = ""
        try:
            await self._drawer.draw(self._spool.files.path(item.id), frame)
        except NotDrawnError as error:
            problem = str(error)
        await self._traced(request, session, item, View.DETAILS, frame)
        rule = next((rule for rule in self._settings.rule if rule.name == item.rule), None)
        nearest = [
            {"key": near["key"], "frame": near["frame"], "score": f"{near['score']:.4f}", "shown": os.path.isfile(near["key"])}
            for near in item.result.get("nearest") or []
        ]
        threshold = item.result.get("threshold")
        row = self._row(item)
        facts = [
            ("Received", datetime.fromtimestamp(item.arrived).astimezone().strftime("%d %b %Y %H:%M:%S %Z")),
            ("From", f"{item.calling_aet or '–'} at {item.address or '–'}, by {item.source.value}"),
            ("Reason", row["reason"]),
            ("Rule", item.rule or "none fitted"),
            ("Gallery", item.result.get("gallery") or "–"),
            ("Also holds", ", ".join(item.result.get("notes") or []).replace("-", " ") or "–"),
            ("Size", f"{item.bytes / 1e6:.2f} MB"),
            ("Pseudonym", row["pseudonym"]),
            ("Object", item.id),
        ]
        return self._page(
            "held.html",
            session,
            item=row,
            frame=frame,
            frames=item.result.get("frames"),
            image_problem=problem,
            nearest=nearest,
            threshold=f"{threshold:.4f}" if threshold else "",
            explanation=_explanation(item, nearest),
            facts=facts,
            decidable=item.state in DECIDABLE,
            destinations=[destination.name for destination in self._settings.destination],
            proposed=rule.forward_to if rule else (),
        )

    async def image(self, request: Request) -> Response:
        session, item = await self._decider(request)
        frame = _frame(request, 0)
        drawn = await self._drawn(self._spool.files.path(item.id), frame)
        await self._traced(request, session, item, View.IMAGE, frame)
        return drawn

    async def nearest(self, request: Request) -> Response:
        session, item = await self._decider(request)
        near = (item.result.get("nearest") or [None])[0]
        if near is None:
            raise Refused(404, "not-found", "there is no such image")
        drawn = await self._drawn(Path(near["key"]), int(near["frame"]))
        await self._traced(request, session, item, View.NEAREST)
        return drawn

    async def _traced(self, request: Request, session: Session, item: Item, what: View, frame: int | None = None) -> None:
        """Write to the audit trail that the session's person looks at an object. To be awaited before anything of it is sent.

        Raises:
            Refused: 503, the trail cannot be written.
        """
        address = _address(request)
        try:
            await run_in_threadpool(lambda: self._quarantine.view([item], session.who, what, address=address, frame=frame))
        except GatewayError as error:
            log.error("not-shown", object=item.id, what=what.value, detail=str(error))
            raise Refused(
                503, "not-traced", "the audit trail cannot be written, so nothing is shown: see the gateway's log"
            ) from error

    async def _drawn(self, path: Path, frame: int) -> Response:
        try:
            return Response(await self._drawer.draw(path, frame), media_type="image/png")
        except NotDrawnError as error:
            raise Refused(404, str(error), "it cannot be shown") from error

    async def release(self, request: Request) -> Response:
        session, item = await self._decider(request)
        form = await self._form(request)
        self._check_csrf(session, form)
        if form.get("sure") != "yes":
            raise Refused(400, "not-sure", "tick the box to say that you have looked at it")
        await self._decided(
            lambda: self._quarantine.release(item.id, session.who, (form.get("destination", ""),), address=_address(request))
        )
        log.info("released", object=item.id, caller=session.caller.name)
        return RedirectResponse("/?done=released", 303)

    async def discard(self, request: Request) -> Response:
        session, item = await self._decider(request)
        form = await self._form(request)
        self._check_csrf(session, form)
        if form.get("sure") != "yes":
            raise Refused(400, "not-sure", "tick the box to say that it may go")
        await self._decided(lambda: self._quarantine.discard(item.id, session.who, address=_address(request)))
        log.info("discarded", object=item.id, caller=session.caller.name)
        return RedirectResponse("/?done=discarded", 303)

    async def _decided(self, decision: Callable[[], object]) -> None:
        try:
            await run_in_threadpool(decision)
        except GatewayError as error:
            raise Refused(409, "not-decided", str(error)) from error

    async def _decider(self, request: Request) -> tuple[Session, Item]:
        """The session of somebody who may decide, and the object that the address names."""
        session = self.session(request)
        if session is None:
            raise Refused(401, "no-session", "log in first")
        if "quarantine" not in session.caller.may:
            raise Refused(403, "forbidden", "this token does not let you see images in quarantine")
        try:
            item = await run_in_threadpool(self._spool.get, request.path_params["object"])
        except GatewayError as error:
            raise Refused(404, "not-found", "there is no such object") from error
        return session, item

    # -- forms and pages -------------------------------------------------------------------------------------------

    async def _form(self, request: Request) -> dict[str, str]:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise Refused(415, "unsupported", "a form is wanted")
        body = await small_body(request, self._http, FORM_BYTES)
        try:
            return dict(urllib.parse.parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=20))
        except ValueError as error:
            raise Refused(400, "damaged", "the form cannot be read") from error

    def _check_csrf(self, session: Session, form: Mapping[str, str]) -> None:
        if not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
            raise Refused(403, "csrf", "this form is not of this session: go back, load the page again, and repeat")

    def _page(self, template: str, session: Session | None, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._pages.get_template(template).render({"refresh": None, **values, "session": session}), status)

    def message(self, request: Request, status: int, title: str, text: str) -> HTMLResponse:
        """A page that says one thing."""
        return self._page("message.html", self.session(request), status, title=title, text=text)


def _frame(request: Request, otherwise: int) -> int:
    number = request.query_params.get("frame", "")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 7 else otherwise


def _name(typed: str) -> str:
    """The name that goes into the audit trail; "" for what may be a token, typed into the wrong field, which must not be kept."""
    words = "".join(char for char in typed if char.isprintable()).split()
    return "" if any(len(word) >= SHORTEST_TOKEN for word in words) else " ".join(words)[:60]


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def certificate_of(request: Request) -> Mapping[str, Any] | None:
    """The certificate that the caller showed and TLS has verified."""
    certificate: Mapping[str, Any] | None = request.scope.get("state", {}).get("peer_certificate")
    return certificate


def _check_same_origin(request: Request) -> None:
    """Browsers say where a form comes from; others do not, and have no cookie to misuse."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "csrf", "this form comes from another site")


def _tile(name: str, value: object, more: str, kind: str = "") -> dict[str, object]:
    return {"name": name, "value": value, "more": more, "kind": kind}


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (size < 86400 and seconds >= size):
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _explanation(item: Item, nearest: list[dict[str, Any]]) -> str:
    if item.verdict == "match" and nearest:
        return (
            f"It scored {nearest[0]['score']} with an image of the gallery: it looks like the same image, altered, or like "
            "another of the same patient. Compare the two before you decide."
        )
    if item.verdict == "clear":
        return "Nothing in the gallery is like it; a rule holds it all the same."
    return f"It could not be judged ({item.reason or 'no reason is known'}). What cannot be judged is never passed on by itself."
