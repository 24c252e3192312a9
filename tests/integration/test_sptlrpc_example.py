"""The example of docs/sptlrpc.md runs as it stands."""

from __future__ import annotations

import contextlib
import io
import re

from tests.support.site import USER_UID, Site
from tests.support.stage import CHECKOUT, Rule

from .library import in_user


def test_example_of_the_document(site: Site) -> None:
    site.kinit()
    (program,) = re.findall(r"^```python\n(.*?)^```", (CHECKOUT / "docs/sptlrpc.md").read_text(), re.M | re.S)

    def run() -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, "docs/sptlrpc.md", "exec"), {"__name__": "__main__"})
        return printed.getvalue()

    # The example has the default prefix, for which the site has no rule.
    with site.upcalls() as upcalls, Rule("lgss:*", site.stage.program, f"--config {upcalls.config_file}"):
        display, sent = in_user(USER_UID, run).splitlines()
    assert re.match(
        rf"uid {USER_UID}, krb5p: up to date, cached, \d+ s left, 2 references, key \d+ ", display
    )
    assert re.fullmatch(r"\d+ bytes to send to the server that knows the handle [0-9a-f]+", sent)
