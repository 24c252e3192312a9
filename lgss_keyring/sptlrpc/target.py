"""The server that contexts are negotiated with."""

from __future__ import annotations

from lgss_keyring.formats.record import Record


class Target(Record):
    """One target of a client, as callout info names it (docs/protocol.md 2).

    - ``nid``: the server's NID as a number; ``Nid.parse("10.0.0.1@tcp").to_int()`` of
      :mod:`lgss_keyring.formats.nid` makes it
    - ``service``: the kind of service, field 6 of callout info: 0 MGS, 1 MDS, 2 OSS
    - ``obd_name``: the name of the client's device for the target, 1 to 63 characters
    - ``self_nid``: the client's own NID as a number; 0 if it is not known
    - ``client_uuid``: the UUID of the client's import
    - ``connection``: counts the connections made to the target.  Each has keys of its own.
    """

    nid: int
    service: int
    obd_name: str
    self_nid: int = 0
    client_uuid: str = "client"
    connection: int = 0
