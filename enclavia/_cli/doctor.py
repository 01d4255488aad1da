"""``doctor`` as a command of click: with the URL of an enclave, and with its report as JSON.

Decides whether an enclave is examined, and how the report is printed. Calls: nothing of the
package. Locks: none.
"""

from __future__ import annotations

import json
import os

import click

from . import exits, streams
from .examination import code_of, of_enclave, of_installation, report
from .settings import URL_VARIABLE, Connection, connection_options, refusing

__all__ = ["doctor"]


@click.command()
@click.argument("url", required=False)
@connection_options
@click.option("--json", "json_wanted", is_flag=True, help="Print it as JSON.")
@click.pass_context
def doctor(
    context: click.Context, connection: Connection, url: str | None, json_wanted: bool
) -> None:
    """Print what this installation is made of: versions, libraries, certificate authorities.

    With a URL (or ENCLAVIA_URL) also how the enclave looks from here: whether it can be reached,
    whether it is in production or in debug mode, how far this machine's clock is from its
    document's time, and, with pins, whether it is the pinned one. Nothing is sent to the workload.
    Exit codes: 0 all is well, 1 something is wrong or the enclave is refused, 2 not reached.
    """
    facts = of_installation()
    policy = connection.loaded()
    known = policy is not None and policy.endpoint is not None
    if url is not None or known or URL_VARIABLE in os.environ:
        options = connection.options(need_pins=False)
        pcrs = options["pcrs"]
        if policy is not None:
            # Those of today: without one that is still allowed, there is none that could match.
            pcrs = [version.pcrs for version in policy.allowed()] if policy.versions else None
        with refusing():
            facts += of_enclave(
                connection.needed_url(url),
                pcrs=pcrs,
                root=options["root"],
                way={
                    "verify": options["verify"],
                    "proxy": options["proxy"],
                    "timeout": options["timeout"],
                },
            )
    if json_wanted:
        said = {fact.name: fact.value for fact in facts}
        streams.say(json.dumps({"well": code_of(facts) == exits.OK, **said}, indent=2))
        context.exit(code_of(facts))
    context.exit(report(facts))
