"""lgssd: negotiates for processes that ask through its socket (the records of docs/protocol.md 9)."""
