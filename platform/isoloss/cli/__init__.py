"""The command line: one noun a file, imported only when it is used, and one table that lists them.

``isoloss --help`` must answer within 250 ms, so this file imports no noun; ``run`` turns every error into an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App

from isoloss.cli.output import fail

# noun: (where its App or function is, what it is for)
NOUNS: Final = {
    "demo": ("isoloss.cli.demo:demo", "The whole story on this machine: search, deepen, forecast, confirm."),
    "up": ("isoloss.cli.service:up", "Run a controller on this machine."),
    "status": ("isoloss.cli.service:status", "Whether a controller runs, and what is in it."),
    "down": ("isoloss.cli.service:down", "End this user's controller."),
    "study": ("isoloss.cli.study:app", "Studies: preview, launch, watch, deepen and read them."),
    "campaign": ("isoloss.cli.campaign:app", "Campaigns: sizes to be searched for a target."),
    "worker": ("isoloss.cli.worker:app", "Workers: start, list, drain."),
    "db": ("isoloss.cli.db:app", "The database: status, migrate, dump, psql."),
    "dash": ("isoloss.cli.dash:app", "Dashboards: open the page, write Grafana's."),
    "project": ("isoloss.cli.project:app", "Projects: weight and quota."),
    "token": ("isoloss.cli.token:app", "Tokens: who may call."),
    "certs": ("isoloss.cli.certs:app", "Certificates: a development CA, and what it signs."),
    "law": ("isoloss.cli.law:app", "Scaling laws on files: fit, forecast, plan, compare, back-test, report."),
}
DEBUG: Final = "--debug"


def _version() -> str:
    from importlib.metadata import version

    return version("isoloss")


def build() -> App:
    """The root command with every noun registered by name, none of them imported."""
    app = App(
        name="isoloss",
        help="Tune small, predict big: deepening Hyperband and scaling laws on one Postgres.",
        help_epilogue="Every command that answers takes --json; --debug adds the traceback to an error.",
        version=_version,
        suppress_keyboard_interrupt=False,
    )
    app.register_install_completion_command(help="Install completion for bash, zsh or fish.")
    for name, (target, purpose) in NOUNS.items():
        app.command(target, name=name, help=purpose)
    return app


def run(tokens: Sequence[str]) -> int:
    """Run one command line and give its exit code; ``--debug`` may stand anywhere before ``--``."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    debug = DEBUG in tokens[:end]
    words = [word for word in tokens[:end] if word != DEBUG] + list(tokens[end:])
    try:
        result = build()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:  # the reader of our stdout has gone, as with `| head`
        sys.stderr.close()
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it ends in one sentence
        return fail(error, debug=debug)
    return result if isinstance(result, int) else 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
