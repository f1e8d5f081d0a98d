"""Who may call what. A method that is not in the table is denied, whoever calls it.

A token of one project sees nothing of the others: what it names there is answered as if it did not exist, and lists
hold its own. What is done under a lease is bound to the project of the token that the lease was granted to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from isoloss.controller.rates import of_guesses
from isoloss.controller.recent import Recent
from isoloss.domain.access import LOCAL, Principal, Role
from isoloss.errors import NotAllowed, NotFound, Unauthenticated
from isoloss.store import tokens as stored
from isoloss.store.pool import Pool

PRINCIPAL: Final[ContextVar[Principal]] = ContextVar("principal", default=LOCAL)
KEPT_SECONDS: Final = 5.0  # a revoked token may go on for so long
Scope = Literal["named", "listed", "spec", "lease", "open"]
READ: Final = frozenset((Role.ADMIN, Role.CLIENT, Role.VIEWER))
WRITE: Final = frozenset((Role.ADMIN, Role.CLIENT))
WORK: Final = frozenset((Role.ADMIN, Role.WORKER))
RULE: Final = frozenset((Role.ADMIN,))


@dataclass(frozen=True, slots=True)
class Rule:
    """The roles a method is for, and how its request names a project.

    ``named``: a study or campaign by name; ``listed``: a filter; ``spec``: the project of the spec it brings; ``lease``:
    leases, which are bound to a project by themselves; ``open``: no project is touched.
    """

    roles: frozenset[Role]
    scope: Scope


TABLE: Final[tuple[tuple[str, frozenset[Role], Scope, str], ...]] = (
    (
        "StudyService",
        READ,
        "named",
        "GetStudy PreviewChange GetBest ListTrials GetCurves GetLogs ExplainStudy WatchStudy",
    ),
    ("StudyService", READ, "listed", "ListStudies"),
    ("StudyService", READ, "open", "PreviewStudy"),
    ("StudyService", WRITE, "spec", "CreateStudy"),
    ("StudyService", WRITE, "named", "DeepenStudy ChangeStudy AddTrial PauseStudy ResumeStudy StopStudy"),
    ("CampaignService", READ, "named", "GetCampaign WatchCampaign ListObservations"),
    ("CampaignService", READ, "listed", "ListCampaigns"),
    ("CampaignService", WRITE, "spec", "LaunchCampaign"),
    ("CampaignService", WRITE, "named", "DeepenCampaign ConfirmCampaign StopCampaign"),
    ("LawService", READ, "named", "GetFit Forecast"),
    ("LawService", WRITE, "named", "FitLaw"),
    ("TrialService", WRITE, "named", "Ask TellAndAsk"),
    ("TrialService", WRITE, "lease", "Heartbeat Report Tell"),
    ("WorkerService", WORK, "lease", "Register Lease Wanted Heartbeat Report Finish"),
    ("WorkerService", READ, "open", "ListWorkers"),
    ("WorkerService", RULE, "open", "Drain"),
)
METHODS: Final = {
    f"/isoloss.v1.{service}/{method}": Rule(roles, scope)
    for service, roles, scope, methods in TABLE
    for method in methods.split()
}
ANONYMOUS: Final = "/grpc.health.v1.Health/"


class _Owned(msgspec.Struct):
    project: str = "default"


class Gate:
    """Lets a call in as somebody, or refuses it; ``tokens`` off is for loopback without TLS alone."""

    def __init__(self, pool: Pool, *, tokens: bool) -> None:
        self.pool = pool
        self.tokens = tokens
        self.guesses = of_guesses()
        self._kept = Recent[str, tuple[float, stored.TokenRow | None]]()

    async def admit(self, method: str, metadata: Sequence[tuple[str, Any]] | None, host: str = "") -> Principal:
        """Who calls; raises ``Unauthenticated``, ``NotAllowed``, or ``Busy`` for a ``host`` that guesses."""
        rule = METHODS.get(method)
        principal = await self._principal(metadata, host) if self.tokens else LOCAL
        if rule is None or principal.role not in rule.roles:
            raise NotAllowed(
                f"{method.rpartition('/')[2]} is not for the role {principal.role}; accepted are "
                f"{', '.join(sorted(rule.roles)) if rule else 'no roles'}."
            )
        return principal

    async def _principal(self, metadata: Sequence[tuple[str, Any]] | None, host: str) -> Principal:
        shown = next((str(value) for key, value in metadata or () if key == "authorization"), "")
        kind, _, token = shown.partition(" ")
        token_id, _, secret = token.partition(".")
        if kind.lower() != "bearer" or not token_id or not secret:
            raise Unauthenticated(
                "The call shows no token; accepted is `authorization: Bearer id.secret`.",
                hint="Set ISOLOSS_TOKEN; `isoloss token create` makes one.",
            )
        _, known = self._kept.get(token_id, (0.0, None))
        if known is None:  # one that was found once is looked up again, whatever others guess
            self.guesses.check(host)
        found = await self._find(token_id)
        if found is None or not found.is_shown_by(secret):
            self.guesses.take(host)
            raise Unauthenticated("The token is not known here; accepted is one that `isoloss token create` has shown.")
        if not found.alive:
            raise Unauthenticated(
                f"The token {found.id} {'was revoked' if found.revoked_at else 'has expired'}; accepted is a live one."
            )
        return found.principal

    async def _find(self, token_id: str) -> stored.TokenRow | None:
        kept_at, row = self._kept.get(token_id, (0.0, None))
        if not kept_at or time.monotonic() - kept_at > KEPT_SECONDS:
            async with self.pool.connection() as conn:
                row = await stored.find(conn, token_id)
            self._kept[token_id] = time.monotonic(), row
        return row


def narrow(method: str, request: Any, principal: Principal) -> None:
    """Hold a request to its caller's project: a filter is narrowed, what is another's does not exist."""
    if not principal.project:
        return
    scope = METHODS[method].scope
    if scope == "listed":
        request.project = request.project or principal.project
    if scope in ("named", "listed") and not principal.sees(named := _named(request).project):
        raise NotFound(f"There is no project {named!r}.")
    if scope == "spec":
        try:
            owner = msgspec.json.decode(request.spec_json, type=_Owned).project
        except msgspec.DecodeError:
            return  # the service says what is wrong with it
        if not principal.sees(owner):
            raise NotFound(f"There is no project {owner!r}.")


def _named(request: Any) -> Any:
    """The part of a request that says which project."""
    fields = request.DESCRIPTOR.fields_by_name
    if "project" in fields:
        return request
    return next(_named(getattr(request, name)) for name in ("study", "campaign", "ask") if name in fields)
