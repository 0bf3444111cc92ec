"""What each route asks of a caller, in one table. A route that is not in it is refused (`declared` below)."""

from dataclasses import dataclass
from typing import Any

from app.errors import ProblemError
from app.keys import Scope
from app.limits import caller

READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Rule:
    """`methods` on `path` and all below it (`*` stands for one segment); open ones hold for the very path alone.

    A caller needs one of `scopes`; where there are none, any key does. `changes`: successes go to the audit trail.
    """

    path: str
    methods: tuple[str, ...]
    scopes: tuple[Scope, ...] = ()
    is_open: bool = False
    changes: bool = True

    def covers(self, method: str, parts: list[str]) -> bool:
        """Whether the rule speaks of this method and path."""
        own = self.path.split("/")
        if method not in self.methods or len(parts) < len(own) or (self.is_open and len(parts) > len(own)):
            return False
        return all(mine in ("*", theirs) for mine, theirs in zip(own, parts, strict=False))


# The first rule that covers a request holds. What was found and made is the whole lab's, so every key reads it.
RULES = (
    *(Rule(path, ("GET", "HEAD"), is_open=True) for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz")),
    Rule("/web/*", ("GET",), is_open=True),
    Rule("/metrics", ("GET",), ("admin",)),
    Rule("/v1/keys", ("GET", "POST", "DELETE"), ("admin",)),
    Rule("/v1/audit", ("GET",), ("admin",)),
    Rule("/v1/embeddings", ("POST",), ("embed",), changes=False),
    Rule("/v1/search", ("POST",), ("embed", "probe"), changes=False),
    Rule("/v1/probes/*/predictions", ("POST",), ("embed", "probe"), changes=False),
    Rule("/v1/probes", ("POST", "PUT", "PATCH", "DELETE"), ("probe",)),
    Rule("/v1/applications", ("DELETE",), ("probe",)),
    Rule("/v1/archives", ("POST", "DELETE"), ("embed",)),
    Rule("/v1/uploads", ("POST", "DELETE"), ("embed",)),
    Rule("/v1/jobs", ("POST", "DELETE"), ("embed", "probe")),
    *(
        Rule(f"/v1/{name}", ("GET",))
        for name in ("encoders", "archives", "uploads", "probes", "applications", "search", "jobs")
    ),
)


SCHEMES: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key: Authorization: Bearer KEY"},
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key",
    },
}


def document(openapi: dict[str, Any]) -> None:
    """Write into an OpenAPI document, in place, how keys are sent and which scopes each operation asks for.

    The empty alternative is there because a service on loopback asks nobody before there is a key.
    """
    openapi["components"]["securitySchemes"] = SCHEMES
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            rule = rule_for(method.upper(), path)
            if rule is None or rule.is_open:
                operation["security"] = []
                continue
            operation["security"] = [{}, *({name: []} for name in SCHEMES)]
            asked = " or ".join(f"`{scope}`" for scope in rule.scopes) or "any"
            operation["description"] = f"{operation.get('description', '')}\n\nScope: {asked}".strip()


def rule_for(method: str, path: str) -> Rule | None:
    """The rule of a request; None where nothing was declared."""
    parts = path.split("/")
    return next((rule for rule in RULES if rule.covers(method, parts)), None)


async def declared() -> None:
    """A dependency of every route: whoever adds a route and no rule finds it closed.

    Raises:
        ProblemError: 403, the table has no rule for this route.
    """
    if caller() is None:
        raise ProblemError(
            403,
            "undeclared-route",
            "The service has no rule that says who may use this route, so nobody may.",
            remedy="The developer of the route adds one to app/policy.py.",
        )
