"""What a user can put into the log: text that is called theirs, and a bounded number of lines."""

from __future__ import annotations

from tests.support.requestor import Requestor
from tests.support.site import USER_UID, Site, machine_callout, user_callout


def test_text_of_a_users_worker_is_called_theirs(site: Site, ticket: int) -> None:
    """The worker is under the control of its user; the machine's is root's own."""
    with site.upcalls() as upcalls, Requestor(ticket) as user, Requestor(0) as root:
        answer = user.ask(upcalls.name(), user_callout())
        steps = [e["message"] for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "negotiation"]
        assert steps
        assert all(text.startswith(f"key {answer.key}: worker of uid {USER_UID} says: ") for text in steps)
        answer = root.ask(upcalls.name(), machine_callout())
        steps = [e["message"] for e in upcalls.events(answer.key) if e.get("LGSS_STEP") == "negotiation"]
        assert steps and not any("says" in text for text in steps)
